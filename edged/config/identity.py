"""[[issuer]], [[mapping]], [identity] and [accounts]."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from edged.config.base import AccountNameField, ByteSize, Count, GivenPath, Seconds, Section, Word
from edged.config.batch import SshPeople
from edged.config.site import Front
from edged.errors import EdgeError
from edged.identity.scopes import parse_scopes
from edged.identity.words import Action, JobClass

SCOPES = {one.value for one in Action if one.value.startswith(("storage.", "compute."))} - {"storage.stat"}


def _known_scopes(value: tuple[str, ...]) -> tuple[str, ...]:
    """Scopes as tokens write them, read by the same rules."""
    for scope in value:
        action = scope.partition(":")[0]
        if action not in SCOPES or " " in scope:
            raise ValueError(f"unknown scope {action!r}")
        try:
            parse_scopes(scope)
        except EdgeError as error:
            raise ValueError(f"{scope!r}: {error.message.removeprefix('token ')}") from None
    return value


class Issuer(Section):
    """A token issuer the site trusts for one VO."""

    url: str = Field(description="Exactly the `iss` of its tokens, byte by byte")
    audience: tuple[str, ...] = Field(
        description="Accepted `aud` values; the WLCG any-audience must be listed to count"
    )
    vo: Word = Field(description="The VO this issuer speaks for")
    profile: Literal["wlcg", "scitokens", "aarc"] = Field(default="wlcg", description="How claims are read")
    jwks_file: GivenPath | None = Field(default=None, description="Local JWKS instead of discovery")
    ca_file: GivenPath | None = Field(default=None, description="CA of this issuer, if not a public one")
    claims_from: Literal["token", "userinfo", "introspection"] = "token"
    introspection_client: str = Field(default="", description="Client id for introspection")
    introspection_secret_file: GivenPath | None = None
    audience_optional: bool = Field(
        default=False, description="EGI tokens often carry no usable aud: accept them for group mapping only"
    )
    refresh_s: Seconds = Field(default=6 * 3600.0, description="How often keys are fetched")
    keep_s: Seconds = Field(default=2 * 86400.0, description="How long a key outlives its issuer's answers")
    max_lifetime_s: Seconds = Field(default=7 * 86400.0, description="Longest exp - iat accepted")
    match_authority: bool = Field(default=False, description="Compare the #authority of entitlements as well")

    @field_validator("url")
    @classmethod
    def _https(cls, value: str) -> str:
        if not value.startswith("https://"):
            raise ValueError("an issuer is an https:// URL (WLCG profile, RFC 8414 §2)")
        return value

    @field_validator("audience")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(value):
            raise ValueError("name at least one audience; tokens for nobody in particular are refused")
        return value


class Mapping(Section):
    """One rule: the first whose conditions all hold decides. No rule holds → denied."""

    issuer: str = Field(description="The issuer's url")
    subjects: tuple[str, ...] = Field(default=(), description="One of these `sub` values")
    groups: tuple[str, ...] = Field(default=(), description="One of these groups (leading slash optional)")
    entitlements: tuple[str, ...] = Field(default=(), description="One of these AARC-G002/G069 entitlements")
    scopes: tuple[str, ...] = Field(default=(), description="All of these scopes must be present")
    clients: tuple[str, ...] = Field(default=(), description="One of these OAuth client ids")
    account: AccountNameField = Field(description="Local account")
    job_class: JobClass = Field(
        default=JobClass.CHAOTIC, alias="class", description="production, pilot, chaotic"
    )
    vo: Word | None = Field(default=None, description="Instead of the issuer's VO")
    grants: tuple[str, ...] = Field(
        default=(),
        description="What tokens WITHOUT capabilities may do, as scopes: 'compute.create', 'storage.read:/'",
    )
    queue: Word | None = Field(default=None, description="Queue when the job names none")
    slurm_account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""

    @field_validator("grants")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known_scopes(value)


class Assertion(Section):
    """A front that itself asserts identities (X.509 proxy, pod): the accounts it may claim."""

    service: Word
    accounts: tuple[AccountNameField, ...]
    job_class: JobClass = Field(default=JobClass.CHAOTIC, alias="class")
    grants: tuple[str, ...] = Field(
        default=("compute.read", "compute.create", "compute.modify", "compute.cancel"),
        description="What such identities may do, as scopes",
    )

    @field_validator("grants")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known_scopes(value)


class Identity(Front):
    """The signer, the issuer fetcher and the public identity API."""

    grant_s: Seconds = Field(default=300.0, le=300.0, description="Life of an access grant")
    job_grant_s: Seconds = Field(default=90 * 86400.0, description="Life of a job grant")
    transfer_grant_s: Seconds = Field(
        default=86400.0, description="How long a transfer may go on after its token's end"
    )
    token_bytes: ByteSize = Field(default=16384, description="Longest token looked at")
    verdict_cache: Count = Field(default=65536, description="Verdicts each front remembers")
    assertions: tuple[Assertion, ...] = ()
    workers: Literal[1] = Field(default=1, description="There is one signer; its API needs no more either")
    service_users: dict[Word, str] = Field(
        default={},
        description="Local user each service runs as; default: edged-SERVICE. Who asks is judged by uid",
    )
    admins: tuple[str, ...] = Field(
        default=(), description="Groups of tokens that may ban and see everything"
    )

    ssh: SshPeople | None = Field(
        default=None, description="SSH certificates for people; None: there are none"
    )

    @property
    def admin_groups(self) -> tuple[str, ...]:
        """``admins`` as principals write their groups: with a leading slash."""
        return tuple("/" + group.strip("/") for group in self.admins)


class Accounts(Section):
    """Becoming local accounts."""

    mode: Literal["accountd", "self"] = Field(
        default="accountd",
        description="'self': everything as the caller's own account, explicit, one account only",
    )
    allowed: tuple[AccountNameField, ...] = Field(
        default=(), description="Accounts accountd may become; empty: exactly those of the mappings"
    )
    minimum_uid: Count = Field(default=1000, description="No account below it, ever")
    idle_s: Seconds = Field(default=900.0, description="A worker without use ends after this")
    file_threads: Count = Field(
        default=16, description="File operations at once as one account on one export, for each front"
    )
    poll_account: AccountNameField | None = Field(
        default=None, description="Account whose squeue sees all jobs; None: one sweep per account"
    )

    @property
    def socket_name(self) -> Path:
        """File name of accountd's socket below runtime.run."""
        return Path("accountd.sock")
