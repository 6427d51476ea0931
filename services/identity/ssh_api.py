"""SSH certificates over https: for people, and what sshd needs to check them."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
from msgspec import Meta

from edged.config import Config
from edged.errors import BadRequest
from edged.http.operations import ADMIN, AUTHENTICATED, PUBLIC, Call, Operation, Reply
from edged.identity.client import IdentityClient
from edged.logs import rfc3339


class NewCertificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``public_key``: one line of a ``.pub`` file. ``life_s``: seconds wanted; the site's limit holds."""

    public_key: Annotated[str, Meta(min_length=16, max_length=8192)]
    life_s: Annotated[float, Meta(gt=0, le=7 * 86400)] = 7 * 86400.0


class SshCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """``certificate``: what belongs into ``<key>-cert.pub``. ``account``: the name to log in with."""

    certificate: str
    serial: int
    account: str
    expires_at: str


class SshApi:
    """The SSH part of the identity API."""

    def __init__(self, identity: IdentityClient) -> None:
        self._identity = identity

    async def certificate(self, call: Call) -> SshCertificate:
        verdict = call.caller
        life_s = min(call.body.life_s, verdict.token_expires_at - time.time())
        source = call.request.remote or ""
        made = await self._identity.own_certificate(verdict, call.body.public_key, source, life_s)
        return SshCertificate(
            certificate=made.text,
            serial=made.serial,
            account=made.account,
            expires_at=rfc3339(made.expires_at),
        )

    async def authority(self, call: Call) -> bytes:
        return (await self._identity.revocations()).authority.encode() + b"\n"

    async def revoked(self, call: Call) -> bytes:
        return (await self._identity.revocations()).krl

    async def revoke(self, call: Call) -> Reply:
        serial = call.path["serial"]
        if not serial.isdecimal() or len(serial) > 18:
            raise BadRequest("not a serial number")
        principal = call.caller.principal
        await self._identity.revoke_certificate(int(serial), f"{principal.subject} of {principal.issuer}")
        return Reply(None, status=204)

    def for_sshd(self) -> tuple[Operation, ...]:
        """What login nodes fetch, and revoking: in every edged."""
        authority = Operation(
            method="GET",
            path="/v1/ssh/ca",
            access=PUBLIC,
            run=self.authority,
            returns=bytes,
            media="text/plain",
            summary="The SSH CA's public key, for sshd's TrustedUserCAKeys",
        )
        revoked = Operation(
            method="GET",
            path="/v1/ssh/revoked",
            access=PUBLIC,
            run=self.revoked,
            returns=bytes,
            media="application/octet-stream",
            summary="The revocation list, for sshd's RevokedKeys",
        )
        revoke = Operation(
            method="DELETE",
            path="/v1/ssh/certificates/{serial}",
            access=ADMIN,
            run=self.revoke,
            status=204,
            problems=(404,),
            summary="Revoke a certificate",
        )
        return authority, revoked, revoke

    def for_people(self) -> Operation:
        """Only where [identity.ssh] is."""
        return Operation(
            method="POST",
            path="/v1/ssh/certificate",
            access=AUTHENTICATED,
            run=self.certificate,
            takes=NewCertificate,
            returns=SshCertificate,
            status=201,
            max_body=16384,
            summary="A short SSH certificate for the account this token maps to",
        )


def operations(config: Config, identity: IdentityClient) -> tuple[Operation, ...]:
    """What this site offers of it."""
    api = SshApi(identity)
    return api.for_sshd() if config.identity.ssh is None else (api.for_people(), *api.for_sshd())
