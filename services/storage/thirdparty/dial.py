"""From a partner's URL to an answer: names resolved once, addresses checked, redirects followed with care."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from edged.config.storage import ThirdParty
from edged.errors import Denied, EdgeError, Upstream, UpstreamTimeout
from services.storage.thirdparty.addresses import AddressPolicy
from services.storage.thirdparty.remote import Partners, Remote, for_hop, redirected
from services.storage.thirdparty.wire import AGENT, Answer, Conversation, connect

REDIRECTS = frozenset({301, 302, 303, 307, 308})
ADDRESSES = 6  # of one name, tried in turn


class Dialer:
    """Connects to partners."""

    def __init__(self, config: ThirdParty, tls: ssl.SSLContext) -> None:
        self.config = config
        self.partners = Partners(config.partners, plain_http=config.plain_http)
        self._addresses = AddressPolicy(config.deny, config.allow)
        self._tls = tls

    @asynccontextmanager
    async def connected(self, remote: Remote) -> AsyncIterator[Conversation]:
        """A connection to a permitted address of the partner. Raises Denied, Upstream."""
        self.partners.check(remote)
        conversation = await self._first(remote)
        try:
            yield conversation
        finally:
            conversation.close()

    async def _first(self, remote: Remote) -> Conversation:
        failure: EdgeError = Upstream(f"{remote.host} has no address")
        for address in (await self.permitted(remote))[:ADDRESSES]:
            try:
                return await connect(
                    (address, remote.port),
                    remote.host,
                    self._tls if remote.scheme == "https" else None,
                    connect_s=self.config.connect_s,
                    stall_s=self.config.stall_s,
                )
            except Upstream as error:
                failure = error
        raise failure

    async def permitted(self, remote: Remote) -> list[str]:
        """The addresses of a name that the site's policy allows. Raises Denied when there is none."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.config.connect_s):
                found = await loop.getaddrinfo(remote.host, remote.port, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise UpstreamTimeout(f"looking up {remote.host} took too long") from None
        except (OSError, UnicodeError) as error:
            raise Upstream(f"cannot resolve {remote.host}") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        allowed = [address for address in addresses if self._addresses.permits(address)]
        if not allowed:
            raise Denied(
                f"{remote.host} has no address this site connects to",
                detail=f"{', '.join(addresses)} denied by storage.third_party.deny",
            )
        return allowed

    @asynccontextmanager
    async def asked(
        self,
        method: str,
        remote: Remote,
        caller: Mapping[str, str],
        ours: Mapping[str, str],
        *,
        answer_s: float,
    ) -> AsyncIterator[tuple[Answer, Conversation, Remote]]:
        """The final answer to a request without body, after redirects, its body still to be read.

        ``caller`` are headers only for the origin of ``remote``.
        """
        here = remote
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(self.config.redirects + 1):
                conversation = await stack.enter_async_context(self.connected(here))
                headers = request_headers(here, for_hop(caller, remote, here), ours)
                answer = await conversation.ask(method, here.target, headers, answer_s=answer_s)
                if answer.status not in REDIRECTS or "location" not in answer.headers:
                    yield answer, conversation, here
                    return
                conversation.close()
                here = redirected(here, answer.headers["location"])
        raise Upstream("too many redirects")


def request_headers(remote: Remote, caller: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """Host first, then ours, then the caller's; no name twice."""
    headers = {"Host": remote.authority, "User-Agent": AGENT, "Accept": "*/*", **ours}
    taken = {name.lower() for name in headers}
    headers.update({name: value for name, value in caller.items() if name.lower() not in taken})
    return headers
