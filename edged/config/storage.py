"""[storage] and [[storage.export]]."""

from __future__ import annotations

from pydantic import Field

from edged.config.base import AbsolutePath, AccountNameField, Prefix, Section, Word
from edged.config.site import Front


class Export(Section):
    """A piece of the file system shown outside."""

    name: Word | None = Field(default=None, description="Short name for logs and metrics; default: from the prefix")
    prefix: Prefix = Field(description="Where it appears in the namespace, e.g. /cms")
    root: AbsolutePath = Field(description="The directory it shows")
    vo: Word
    accounts: tuple[AccountNameField, ...] = Field(default=(), description="Accounts that may use it; empty: the VO's")

    @property
    def label(self) -> str:
        """The export's short name."""
        return self.name or self.prefix.strip("/").replace("/", "-") or "root"


class Storage(Front):
    """The WebDAV endpoint."""

    exports: tuple[Export, ...] = Field(default=(), alias="export")
