"""A signer of the tests' own: real grants, real certificates, real JWTs, keys that nobody else has."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edged import sshca
from edged.identity import grants
from edged.identity.grants import Grant, Scope
from edged.identity.words import AccountName, Action, JobId, ServiceName
from edged.sshca import Certificate, Order, SlurmToken

WORK = frozenset(action for action in Action if action.value.startswith("job."))


class Signing:
    """Implements ``edged.sshca.Credentials`` for drivers under test; change its fields to misbehave."""

    def __init__(
        self,
        *,
        life_s: float = 300.0,
        jwt_key: Path | None = None,
        force_command: str = "",
        source_addresses: tuple[str, ...] = (),
    ) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.life_s = life_s
        self.force_command = force_command
        self.source_addresses = source_addresses
        self.signed = 0
        self._jwt_key = jwt_key
        self._grants = Ed25519PrivateKey.generate()

    @property
    def authority(self) -> str:
        """For sshd's TrustedUserCAKeys."""
        return sshca.authority_line(self.key.public_key(), "tests")

    def grant(self, account: str, kind: str = "job") -> bytes:
        """A job grant (or a standing one) for ``account``."""
        now = time.time()
        grant = Grant(
            kind="job" if kind == "job" else "standing",
            id=secrets.token_hex(4),
            service=ServiceName("jobs"),
            account=AccountName(account),
            scopes=(Scope(WORK if kind == "job" else frozenset({Action.JOB_POLL})),),
            principal=None,
            issued_at=now,
            expires_at=now + 86400,
            job=JobId("any") if kind == "job" else None,
        )
        return grants.sign(grant, self._grants)

    async def ssh_certificate(
        self, grant: bytes, cluster: str, public_key: str, action: Action
    ) -> Certificate:
        seen = grants.peek(grant)
        self.signed += 1
        now = time.time()
        may = ",".join(sorted(a.value.removeprefix("job.") for scope in seen.scopes for a in scope.actions))
        order = Order(
            public_key=public_key,
            serial=self.signed,
            principal=seen.account,
            key_id="tests",
            valid_from=now - 3600,
            valid_to=now + self.life_s,
            source_addresses=self.source_addresses,
            force_command=f"{self.force_command} --may {may}" if self.force_command else "",
        )
        return sshca.sign(order, self.key)

    async def slurm_token(self, grant: bytes, cluster: str, action: Action) -> SlurmToken:
        assert self._jwt_key is not None
        account, now = grants.peek(grant).account, int(time.time())
        self.signed += 1
        claims = {"iat": now, "exp": now + int(self.life_s), "sun": account}
        return SlurmToken(jwt.encode(claims, self._jwt_key.read_bytes(), "HS256"), account, now + self.life_s)
