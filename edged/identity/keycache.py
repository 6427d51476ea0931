"""Issuers' key documents on disk: a restart during an issuer's outage still knows its keys.

Public keys only, readable by all: the fetcher writes them; the signer, ``edged whoami`` and the root:// view
read them.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import msgspec

from edged.identity.words import IssuerUrl
from edged.logs import get_logger

log = get_logger("edged.identity.keycache")


class KeyDocument(msgspec.Struct, frozen=True):
    """A JWKS as its issuer gave it, and when (Unix seconds)."""

    issuer: IssuerUrl
    jwks: str
    fetched_at: float


def directory(state: Path) -> Path:
    """Where they lie, below ``[runtime] state``."""
    return state / "issuers"


class KeyCache:
    """One small file per issuer in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, issuer: str) -> KeyDocument | None:
        """What is held of ``issuer``; None when there is nothing readable."""
        try:
            document = msgspec.json.decode(self._file(issuer).read_bytes(), type=KeyDocument)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("cached keys cannot be read", extra={"issuer": issuer, "reason": str(error)})
            return None
        return document if document.issuer == issuer else None

    def write(self, document: KeyDocument) -> None:
        """Keep ``document``; a full disk is logged, since the keys still are in memory."""
        file = self._file(document.issuer)
        temporary = file.with_suffix(f".{os.getpid()}")
        try:
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(document))
            temporary.chmod(0o644)
            temporary.rename(file)
        except OSError as error:
            log.warning("keys cannot be cached", extra={"issuer": document.issuer, "reason": str(error)})

    def _file(self, issuer: str) -> Path:
        return self._directory / f"{sha256(issuer.encode()).hexdigest()[:32]}.json"
