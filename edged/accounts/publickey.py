"""Identity's public key, as accountd reads it from the file that identity publishes."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from edged.errors import Unavailable


class PublicKey:
    """Identity's public key, read again when its file changes. Raw 32 bytes or PEM."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._version: tuple[int, int] | None = None
        self._key: Ed25519PublicKey | None = None

    def get(self) -> Ed25519PublicKey:
        """Raises Unavailable while identity has not published one."""
        try:
            facts = self._file.stat()
            version = (facts.st_mtime_ns, facts.st_ino)
            if self._key is None or version != self._version:
                self._key, self._version = _public_key(self._file.read_bytes()), version
        except (OSError, ValueError) as error:
            raise Unavailable("identity has published no usable key", detail=str(error)) from error
        return self._key


def _public_key(data: bytes) -> Ed25519PublicKey:
    if len(data) == 32:
        return Ed25519PublicKey.from_public_bytes(data)
    key = load_pem_public_key(data)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an Ed25519 key")  # noqa: TRY004
    return key
