"""The chain of a real repository, link by link."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cache import signatures
from services.cache.signatures import BadSignature

DATA = Path(__file__).parents[2] / "real/cache/data/software.example.org"
NAME = "software.example.org"
NOW = 1.8e9
KEY = signatures.master_key((DATA / "master.pub").read_bytes())
WHITELIST = (DATA / "rev2/.cvmfswhitelist").read_bytes()
MANIFEST = (DATA / "rev2/.cvmfspublished").read_bytes()
CERTIFICATE = (DATA / "objects/37/b67998db2b28fd6ccf464eda1e7ca555ecde91X").read_bytes()


def test_the_whole_chain() -> None:
    whitelist = signatures.check_whitelist(WHITELIST, NAME, [KEY], NOW)
    signer = signatures.certificate(CERTIFICATE)
    manifest = signatures.check_manifest(MANIFEST, NAME, signer, whitelist)
    assert (manifest.revision, manifest.ttl_s) == (3, 240)
    assert [suffix for _, suffix in manifest.objects()] == ["C", "X", "H", "M"]


@pytest.mark.parametrize(
    ("data", "name", "now", "reason"),
    [
        (WHITELIST, NAME, 4e9, "expired"),
        (WHITELIST, "other.org", NOW, "another repository"),
        (WHITELIST.replace(b"E2046", b"E2066"), NAME, NOW, "hash"),
        (WHITELIST[:-1] + bytes([WHITELIST[-1] ^ 1]), NAME, NOW, "master key"),
        (WHITELIST[: WHITELIST.index(b"--")], NAME, NOW, "signature block"),
        (b"", NAME, NOW, "signature block"),
    ],
)
def test_whitelists_that_do_not_hold(data: bytes, name: str, now: float, reason: str) -> None:
    with pytest.raises(BadSignature, match=reason):
        signatures.check_whitelist(data, name, [KEY], now)


def test_a_manifest_needs_its_own_signature() -> None:
    whitelist = signatures.check_whitelist(WHITELIST, NAME, [KEY], NOW)
    signer = signatures.certificate(CERTIFICATE)
    older = (DATA / "rev1/.cvmfspublished").read_bytes()
    body, _, _ = MANIFEST.partition(b"\n--\n")
    hexhash = signatures.take_apart(MANIFEST).hexhash
    forged = body + b"\n--\n" + hexhash + b"\n" + signatures.take_apart(older).signature
    with pytest.raises(BadSignature, match="does not fit"):
        signatures.check_manifest(forged, NAME, signer, whitelist)


def test_a_certificate_that_unpacks_without_end_is_cut() -> None:
    import zlib

    with pytest.raises(BadSignature):
        signatures.certificate(zlib.compress(b"0" * (64 << 20)))
