"""Credentials that are worth something elsewhere: SSH certificates and slurmrestd's tokens.

Only the signer holds the keys. What a certificate or token may do, and for how long, is in root-owned
configuration; who asks brings nothing but a grant and a public key.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edged import metrics, sshca
from edged.config import Config
from edged.config.batch import SlurmRestCluster, SshCluster, SshPeople
from edged.errors import BadRequest, Denied, Unavailable
from edged.identity import grants, wire
from edged.identity.grants import Ban, Grant, within
from edged.identity.judge import JOBS
from edged.identity.words import Action, Principal, ServiceName
from edged.logs import audit
from edged.sshca import Certificate, Order, SlurmToken
from services.identity.callers import ADMIN, API
from services.identity.certificates import Certificates, Issued

SIGNED = metrics.counter("identity_credentials", "SSH certificates and Slurm tokens signed.", ("kind",))

_FRESH = (Action.JOB_SUBMIT, Action.JOB_STAGE)  # what a ban takes away from a job grant
_WORK = (Action.JOB_SUBMIT, Action.JOB_STAGE, Action.JOB_POLL, Action.JOB_CANCEL, Action.JOB_CLEAN)

C = TypeVar("C", SshCluster, SlurmRestCluster)


class Authority:
    """The site's SSH CA, and the keys of its slurmrestds."""

    def __init__(
        self,
        config: Config,
        key: Ed25519PrivateKey,
        grant_key: Ed25519PublicKey,
        certificates: Certificates,
        *,
        ban_on: Callable[[Principal], Ban | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._key = key
        self._grant_key = grant_key
        self._certificates = certificates
        self._ban_on = ban_on
        self._clock = clock

    def reload(self, config: Config) -> None:
        """Take new clusters and rules at once."""
        self._config = config

    # -- the job engine's own ---------------------------------------------------------------------

    async def for_cluster(self, service: ServiceName, what: wire.ForSshCertificate) -> Certificate:
        """A certificate for the account of a grant. Raises Denied, BadRequest."""
        grant, banned = self._covered(service, what.grant, what.action)
        cluster = self._cluster(what.cluster, SshCluster)
        if cluster.keys is not None:
            raise Denied("this cluster has keys of its own")
        may = [a for a in _WORK if grant.allows(a) and not (banned and a in _FRESH)]
        words = ",".join(action.value.removeprefix("job.") for action in may)
        return await self._sign(
            what.public_key,
            Issued(
                grant.account,
                f"cluster {cluster.name}: {words}",
                None,
                self._end(grant, cluster.certificate_s),
            ),
            key_id=f"edged {self._config.site.name} {cluster.name} {words}",
            source_addresses=cluster.source_addresses,
            force_command=f"{cluster.force_command} --may {words}" if cluster.force_command else "",
        )

    def slurm_token(self, service: ServiceName, what: wire.ForSlurmToken) -> SlurmToken:
        """A JWT for the account of a grant (claims of slurmrestd's rest_auth/jwt). Raises Denied, Unavailable."""
        grant, _ = self._covered(service, what.grant, what.action)
        cluster = self._cluster(what.cluster, SlurmRestCluster)
        now, end = int(self._clock()), int(self._end(grant, cluster.token_s))
        claims = {"iat": now, "exp": end, "sun": grant.account}
        text = jwt.encode(claims, _secret(cluster.jwt_key), algorithm="HS256")
        SIGNED.labels("slurm-token").inc()
        audit(
            "slurm token", who=_who(grant), account=grant.account, allowed=True,
            reason=grant.kind, cluster=cluster.name, seconds=end - now,
        )  # fmt: skip
        return SlurmToken(text, grant.account, float(end))

    def _covered(self, service: ServiceName, wire_form: bytes, action: Action) -> tuple[Grant, bool]:
        """A job or standing grant that covers ``action``, and whether its owner is banned. Raises Denied."""
        if service != JOBS:
            raise Denied("only the job engine may ask for this")
        grant = grants.verify(wire_form, self._grant_key, self._clock())
        if grant.kind not in ("job", "standing") or grant.service != service:
            raise Denied("not a job grant or standing grant of the job engine")
        if action not in _WORK or not grant.allows(action):
            raise Denied(f"the grant has no {action.value}")
        if grant.account == "root":
            raise Denied("never for root")
        banned = grant.principal is not None and self._ban_on(grant.principal) is not None
        if banned and action in _FRESH:
            raise Denied("this identity is banned at this site")
        return grant, banned

    def _end(self, grant: Grant, life_s: float) -> float:
        return min(self._clock() + life_s, grant.expires_at)

    def _cluster(self, name: str, kind: type[C]) -> C:
        jobs = self._config.jobs
        for cluster in jobs.clusters if jobs is not None else ():
            if cluster.name == name and isinstance(cluster, kind):
                return cluster
        raise Denied("no such cluster is configured", detail=name)

    # -- people -----------------------------------------------------------------------------------

    async def for_person(self, service: ServiceName, what: wire.ForOwnCertificate) -> Certificate:
        """A certificate for whoever a token maps to ``account``. Raises Denied, BadRequest."""
        if service != API:
            raise Denied("only the identity API may ask for this")
        rules = self._config.identity.ssh
        grant = grants.verify(what.grant, self._grant_key, self._clock())
        if rules is None or grant.kind != "access" or grant.service != service or grant.principal is None:
            raise Denied("this site gives no SSH certificates")
        _refuse_person(rules, grant, grant.principal, self._ban_on(grant.principal))
        addresses = rules.source_addresses or ((sshca.source(what.source),) if rules.pin_source else ())
        if not 0 < what.life_s <= 7 * 86400:
            raise BadRequest("life_s: not a number of seconds up to a week")
        principal = grant.principal
        return await self._sign(
            what.public_key,
            Issued(grant.account, "person", principal, self._clock() + min(what.life_s, rules.life_s)),
            key_id=f"edged {self._config.site.name} {principal.subject} of {principal.issuer}",
            source_addresses=addresses,
            force_command=rules.force_command,
            extensions=rules.extensions,
        )

    async def _sign(
        self,
        public_key: str,
        issued: Issued,
        *,
        key_id: str,
        source_addresses: tuple[str, ...],
        force_command: str,
        extensions: tuple[str, ...] = (),
    ) -> Certificate:
        sshca.public_key(public_key)  # a bad key costs no serial
        serial = await self._certificates.add(issued)
        order = Order(
            public_key=public_key,
            serial=serial,
            principal=issued.account,
            key_id=key_id,
            valid_from=self._clock(),
            valid_to=issued.expires_at,
            extensions=extensions,
            source_addresses=source_addresses,
            force_command=force_command,
        )
        certificate = sshca.sign(order, self._key)
        SIGNED.labels("person" if issued.principal else "cluster").inc()
        who = issued.principal.for_log() if issued.principal else {"service": JOBS}
        audit(
            "ssh certificate", who=who, account=issued.account, allowed=True, reason=issued.purpose,
            serial=serial, expires_at=certificate.expires_at, source=",".join(source_addresses),
        )  # fmt: skip
        return certificate

    # -- revocation -------------------------------------------------------------------------------

    def revocations(self) -> wire.Revocations:
        """The CA's public key and the list, for sshd's RevokedKeys."""
        now = self._clock()
        public = self._key.public_key()
        krl = sshca.revocation_list(public, self._certificates.revoked(), version=int(now), made_at=now)
        return wire.Revocations(sshca.authority_line(public, self._config.site.name), krl)

    async def revoke(self, service: ServiceName, what: wire.RevokeCertificate) -> wire.Done:
        """Revoke one certificate. Raises Denied, NotFound."""
        if service not in (ADMIN, API):
            raise Denied("only admins may revoke certificates")
        one = await self._certificates.revoke(what.serial)
        audit(
            "ssh certificate revoked",
            who={"by": what.by},
            account=one.account,
            allowed=True,
            serial=what.serial,
            reason=one.purpose,
        )
        return wire.Done()

    async def banned(self, ban: Ban) -> None:
        """Revoke what a new ban covers."""
        for serial in await self._certificates.revoke_covered(ban):
            audit(
                "ssh certificate revoked",
                who={"by": f"ban {ban.id}"},
                allowed=True,
                reason="ban",
                serial=serial,
            )


def _refuse_person(rules: SshPeople, grant: Grant, principal: Principal, ban: Ban | None) -> None:
    """Raises Denied unless this person may have a certificate for the grant's account."""
    if ban is not None:
        raise Denied("this identity is banned at this site", detail=f"ban {ban.id}")
    if grant.account == "root" or grant.account not in rules.accounts:
        raise Denied("no SSH certificates for the account your token maps to", detail=grant.account)
    groups = rules.group_names
    if groups and not any(
        within("/" + own.strip("/"), group) for own in principal.groups for group in groups
    ):
        raise Denied("none of your groups may have SSH certificates here")


def _who(grant: Grant) -> dict[str, object]:
    return grant.principal.for_log() if grant.principal is not None else {"service": grant.service}


def _secret(file: Path) -> bytes:
    """slurmrestd's HS256 key, read each time: sites rotate it. Raises Unavailable."""
    try:
        secret = file.read_bytes()
    except OSError as error:
        raise Unavailable(
            "the cluster's JWT key cannot be read", detail=f"{file}: {error.strerror}"
        ) from error
    if len(secret) < 32:
        raise Unavailable(
            "the cluster's JWT key is too short", detail=f"{file}: {len(secret)} bytes, 32 needed"
        )
    return secret
