"""Talking to one slurmrestd: connections, a short token per account, the API's version, faults in words.

slurmrestd answers 500 for most things that go wrong, an expired token among them (it then cannot load what it
was asked for). So every error costs the token its place here: the next question brings a new one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import msgspec

from edged import metrics
from edged.config.batch import SlurmRestCluster
from edged.errors import Busy, Unavailable, UnknownOutcome
from edged.identity import grants
from edged.identity.words import Action
from edged.logs import get_logger
from edged.sshca import Credentials, SlurmToken
from services.jobs.batch.slurmrest import shapes
from services.jobs.batch.slurmrest.wire import NotSent, Told, Wire

log = get_logger("edged.jobs.slurmrest")

REQUESTS = metrics.counter("slurmrest_requests", "Requests to slurmrestd, by status.", ("cluster", "status"))


class Rest:
    """One slurmrestd. A service: its connections live while it runs."""

    def __init__(self, cluster: SlurmRestCluster, credentials: Credentials, deadline_s: float) -> None:
        self.name = f"slurmrest {cluster.name}"
        self.cluster = cluster
        self._credentials = credentials
        self._deadline_s = deadline_s
        self._tokens: dict[tuple[str, str], SlurmToken] = {}
        self._wire: Wire | None = None
        self._version: str | None = cluster.api_version or None
        self._trouble: str | None = None

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        ca_file = str(self.cluster.ca_file) if self.cluster.ca_file else None
        self._wire = Wire(
            self.cluster.url, ca_file, limit=self.cluster.connections, deadline_s=self._deadline_s
        )
        try:
            yield
        finally:
            self._wire.close()
            self._wire = None

    def not_ready(self) -> str | None:
        """The last trouble, until something works again."""
        return self._trouble

    async def version(self, grant: bytes) -> str:
        """The newest API version both sides know, asked once. Raises Unavailable."""
        if self._version is None:
            told = await self._ask(grant, "GET", "/openapi/v3", action=Action.JOB_POLL)
            try:
                paths = msgspec.json.decode(told.body, type=_Document).paths
            except msgspec.MsgspecError as error:
                raise Unavailable("slurmrestd does not describe its API", detail=str(error)) from error
            found = shapes.newest(list(paths))
            if found is None:
                known = f"{shapes.KNOWN[-1]} to {shapes.KNOWN[0]}"
                raise Unavailable(f"slurmrestd speaks no version of {known}")
            log.info("slurmrestd", extra={"cluster": self.cluster.name, "version": found})
            self._version = found
        return self._version

    async def get(self, grant: bytes, family: str, path: str, **query: str) -> Told:
        """Ask; once more with a new token when the first is not taken. 200 or 304. Raises Unavailable."""
        version = await self.version(grant)
        url = f"/{family}/{version}/{path}"
        told = await self._ask(grant, "GET", url, action=Action.JOB_POLL, query=query)
        if told.status not in (200, 304):
            told = await self._ask(grant, "GET", url, action=Action.JOB_POLL, query=query)
        if told.status == 404 and not path.startswith("job/"):  # upgraded: it may have dropped this version
            self._version = self.cluster.api_version or None
        return told

    async def submit(self, grant: bytes, body: Mapping[str, Any]) -> Told:
        """Exactly one request. Raises Busy when it was never sent, UnknownOutcome when it was not answered."""
        url = f"/slurm/{await self.version(grant)}/job/submit"
        try:
            return await self._ask(grant, "POST", url, action=Action.JOB_SUBMIT, body=body)
        except NotSent as error:
            raise Busy(error.message, retry_after_s=5.0, detail=error.detail) from error
        except Unavailable as error:
            raise UnknownOutcome("it is not known whether Slurm has the job", detail=str(error)) from error

    async def delete(self, grant: bytes, path: str) -> Told:
        """Raises Unavailable."""
        version = await self.version(grant)
        return await self._ask(grant, "DELETE", f"/slurm/{version}/{path}", action=Action.JOB_CANCEL)

    async def _ask(
        self,
        grant: bytes,
        method: str,
        url: str,
        *,
        action: Action,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Told:
        if self._wire is None:
            raise NotSent("edged stops")
        token = await self._token(grant, action)
        headers = {"X-SLURM-USER-NAME": token.account, "X-SLURM-USER-TOKEN": token.text}
        target = f"{url}?{urlencode(query)}" if query else url
        data = None if body is None else msgspec.json.encode(body)
        try:
            told = await self._wire.request(method, target, headers, data)
        except Unavailable as error:
            self._trouble = error.message
            raise
        REQUESTS.labels(self.cluster.name, str(told.status)).inc()
        if told.status >= 400 and told.status != 404:
            self._drop(token)
        else:
            self._trouble = None
        return told

    async def _token(self, grant: bytes, action: Action) -> SlurmToken:
        """The account's token, renewed in good time. Fresh ones for work are asked for by work grants."""
        seen = grants.peek(grant)
        key = (seen.account, seen.kind)
        held = self._tokens.get(key)
        if held is None or time.time() > held.expires_at - self.cluster.token_s / 3:
            held = await self._credentials.slurm_token(grant, self.cluster.name, action)
            self._tokens[key] = held
        return held

    def _drop(self, token: SlurmToken) -> None:
        for key, held in list(self._tokens.items()):
            if held is token:
                del self._tokens[key]


class _Document(msgspec.Struct):
    paths: dict[str, msgspec.Raw]
