"""[portal] and [portal.oidc]."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from edged.config.base import AbsolutePath, ByteSize, Count, GivenPath, Seconds, Section
from edged.config.site import Front


class Oidc(Section):
    """Sign-in at an OpenID provider, by authorization code with PKCE."""

    issuer: str = Field(pattern="^https://", description="The provider, exactly as its discovery names it")
    client_id: str = Field(min_length=1)
    client_secret_file: GivenPath | None = Field(default=None, description="None: a public client")
    groups: tuple[str, ...] = Field(min_length=1, description="Who may sign in: members of any of these")
    groups_claim: str = Field(default="wlcg.groups", description="Claim of the ID token that has them")
    scopes: tuple[str, ...] = ("openid", "profile", "wlcg.groups")
    ca_file: GivenPath | None = Field(default=None, description="CA bundle for the provider")


class Portal(Front):
    """See services/portal/README.md."""

    workers: Literal[1] = Field(default=1, description="Sessions are kept in its memory")
    url: str = Field(default="", description="How browsers reach it, e.g. https://edge.example.org:8445")
    admin_token_file: GivenPath | None = Field(
        default=None, description="One line of at least 32 characters: whoever has it may sign in"
    )
    oidc: Oidc | None = None
    session_s: Seconds = Field(default=8 * 3600.0, description="Signed in for so long, then again")
    sessions: Count = Field(default=1000, description="Signed in at once; the oldest is signed out")
    refresh_s: Seconds = Field(default=10.0, description="How often the services are asked")
    audit_files: tuple[AbsolutePath, ...] = Field(
        default=(), description="Audit logs to search; empty: log.audit_file, of every service's unit"
    )
    audit_bytes: ByteSize = Field(default=64 << 20, description="Newest bytes of each that a search reads")
    found: Count = Field(default=200, description="Lines a search shows")

    @field_validator("url")
    @classmethod
    def _origin(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("https", "http") or not parts.netloc or parts.path.strip("/")):
            raise ValueError(f"not an origin: {value!r}; write https://host:port")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _someone(self) -> Portal:
        if self.admin_token_file is None and self.oidc is None:
            raise ValueError("nobody could sign in: set admin_token_file, or [portal.oidc], or both")
        if self.oidc is not None and not self.url:
            raise ValueError("url: needed with [portal.oidc], which sends browsers back there")
        return self
