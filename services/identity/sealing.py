"""Identity's signing keys: made once, kept in a file only identity reads, its public half beside it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from edged.errors import ConfigError
from edged.sshca import authority_line

KEY, PUBLIC = "grant.key", "grant.pub"
SSH_KEY, SSH_PUBLIC = "ssh_ca.key", "ssh_ca.pub"


def ssh_key(directory: Path, site: str) -> Ed25519PrivateKey:
    """The SSH CA's key, made at the first start; sshd's form of its public half beside it. Raises ConfigError."""
    key = _private_key(directory, SSH_KEY)
    line = authority_line(key.public_key(), site).encode() + b"\n"
    if not (directory / SSH_PUBLIC).exists() or (directory / SSH_PUBLIC).read_bytes() != line:
        _write(directory / SSH_PUBLIC, line, 0o644)
    return key


def grant_key(directory: Path) -> Ed25519PrivateKey:
    """The key below ``directory``, made at the first start. Raises ConfigError when it cannot be used."""
    key = _private_key(directory, KEY)
    try:
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        if not (directory / PUBLIC).exists() or (directory / PUBLIC).read_bytes() != public:
            _write(directory / PUBLIC, public, 0o644)
    except OSError as error:
        raise ConfigError([f"runtime.state: the grant key in {directory}: {error}"]) from error
    return key


def _private_key(directory: Path, name: str) -> Ed25519PrivateKey:
    try:
        # accountd has no CAP_DAC_OVERRIDE: it must be able to pass through to the public half
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        file = directory / name
        if not file.exists():
            _write(file, _private_pem(Ed25519PrivateKey.generate()), 0o600)
        if file.stat().st_mode & 0o077:
            raise ConfigError(
                [f"runtime.state: {file} is open to others; chmod 600 it, or remove it and restart"]
            )
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError([f"runtime.state: the key {directory / name}: {error}"]) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError([f"runtime.state: {file} is no Ed25519 key"])
    return key


def public_key(directory: Path) -> Ed25519PublicKey:
    """The public half, as accountd reads it. Raises ConfigError."""
    try:
        key = load_pem_public_key((directory / PUBLIC).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError([f"runtime.state: {directory / PUBLIC}: {error}"]) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError([f"runtime.state: {directory / PUBLIC} is no Ed25519 key"])
    return key


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(file: Path, content: bytes, mode: int) -> None:
    """Whole or not at all, on disk when this returns."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as out:
        os.fchmod(out.fileno(), mode)
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    temporary.rename(file)
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
