"""Certificates and revocation lists, read back by OpenSSH itself."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edged import sshca
from edged.errors import BadRequest
from edged.sshca import Order

AUTHORITY = Ed25519PrivateKey.generate()


def line(key: Ed25519PrivateKey | rsa.RSAPrivateKey | dsa.DSAPrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def order(serial: int = 7, **more: object) -> Order:
    now = time.time()
    base: dict[str, object] = {
        "public_key": line(Ed25519PrivateKey.generate()), "serial": serial, "principal": "cmsprd",
        "key_id": "edged test", "valid_from": now, "valid_to": now + 60,
    }  # fmt: skip
    return Order(**{**base, **more})  # type: ignore[arg-type]


def keygen(*argv: str, status: int = 0) -> str:
    done = subprocess.run(["ssh-keygen", *argv], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == status, done
    return done.stdout


def test_openssh_reads_what_the_certificate_says(tmp_path: Path) -> None:
    made = sshca.sign(
        order(
            source_addresses=("192.0.2.0/24",), force_command="/opt/x --may poll", extensions=("permit-pty",)
        ),
        AUTHORITY,
    )
    file = tmp_path / "key-cert.pub"
    file.write_text(made.text)
    told = keygen("-L", "-f", str(file))
    for word in (
        "cmsprd",
        "Serial: 7",
        "force-command /opt/x --may poll",
        "source-address 192.0.2.0/24",
        "permit-pty",
    ):
        assert word in told


def test_openssh_reads_the_revocation_list(tmp_path: Path) -> None:
    krl = tmp_path / "krl"
    krl.write_bytes(
        sshca.revocation_list(AUTHORITY.public_key(), [9, 7, 7, 1 << 40], version=3, made_at=time.time())
    )
    for serial, status in ((7, 1), (9, 1), (1 << 40, 1), (8, 0)):
        file = tmp_path / f"{serial}-cert.pub"
        file.write_text(sshca.sign(order(serial), AUTHORITY).text)
        keygen("-Q", "-f", str(krl), str(file), status=status)
    krl.write_bytes(sshca.revocation_list(AUTHORITY.public_key(), [], version=4, made_at=time.time()))
    keygen("-Q", "-f", str(krl), str(tmp_path / "7-cert.pub"))


@pytest.mark.parametrize(
    "text",
    [
        "", "ssh-ed25519", "ssh-ed25519 ////", "no key\nat all", "ssh-ed25519 é", "x" * 9000,
        line(rsa.generate_private_key(65537, 2048)), line(dsa.generate_private_key(1024)),
    ],
)  # fmt: skip
def test_what_is_no_good_key_is_not_signed(text: str) -> None:
    with pytest.raises(BadRequest):
        sshca.public_key(text)


def test_a_certificate_is_no_public_key() -> None:
    with pytest.raises(BadRequest):
        sshca.public_key(sshca.sign(order(), AUTHORITY).text)


def test_sources() -> None:
    assert (sshca.source("192.0.2.7"), sshca.source("2001:db8::1")) == ("192.0.2.7/32", "2001:db8::1/128")
    for wrong in ("", "unix", "192.0.2.7,0.0.0.0/0", "all"):
        with pytest.raises(BadRequest):
            sshca.source(wrong)
