"""Digest headers, algorithms, and the records kept beside files."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.accounts.api import Entry, Kind
from edged.errors import BadRequest
from services.storage import digests, records

NS = 1_000_000_000


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_adler32_of_parts_combines(first: bytes, second: bytes) -> None:
    one, two = digests.running("adler32"), digests.running("adler32")
    one.update(first)
    two.update(second)
    whole = digests.combine_adler32(one.digest(), two.digest(), len(second))
    assert whole == zlib.adler32(first + second).to_bytes(4, "big")


@pytest.mark.parametrize("algorithm", digests.KNOWN)
def test_every_algorithm_runs_and_is_written_and_read_back(algorithm: str) -> None:
    running = digests.running(algorithm)
    running.update(memoryview(b"123456789"))
    value = running.digest()
    assert len(value) == digests.LENGTH[algorithm]
    assert digests.decode(algorithm, digests.text(algorithm, value)) == value


def test_known_values() -> None:
    found = digests.Several(["adler32", "crc32c", "md5"])
    found.update(b"123456789")
    assert digests.text("adler32", found.results()["adler32"]) == "091e01de"
    assert digests.text("crc32c", found.results()["crc32c"]) == "e3069283"


@pytest.mark.parametrize(
    ("header", "best"),
    [
        ("adler32", "adler32"),
        ("ADLER32", "adler32"),
        ("md5", "md5"),
        ("adler32;q=0.5, md5;q=1", "md5"),
        ("SHA-256, adler32;q=0.1", "sha-256"),
        ("unixsum", None),
        ("adler32;q=0", None),
        ("", None),
    ],
)
def test_want_digest(header: str, best: str | None) -> None:
    assert digests.wanted({"Want-Digest": header}) == (best, None)


def test_want_repr_digest() -> None:
    assert digests.wanted({"Want-Repr-Digest": "sha-256=3, adler=10"}) == (None, "adler32")
    assert digests.wanted({"Want-Repr-Digest": "sha-512=0"}) == (None, None)


def test_answers() -> None:
    values = {"adler32": bytes.fromhex("091e01de"), "sha-256": hashlib.sha256(b"x").digest()}
    headers = digests.answer_headers("adler32", "sha-256", values)
    assert headers["Digest"] == "adler32=091e01de"
    assert headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(values['sha-256']).decode()}:"
    assert digests.answer_headers("md5", None, values) == {}


def test_announced() -> None:
    md5 = base64.b64encode(hashlib.md5(b"x").digest()).decode()
    found = digests.announced(
        {"Digest": "adler32=91E01DE,md5=" + md5, "Content-MD5": md5, "Repr-Digest": "x=:AA==:"}
    )
    assert found == {"adler32": bytes.fromhex("091e01de"), "md5": hashlib.md5(b"x").digest()}


@pytest.mark.parametrize(
    "headers",
    [
        {"Digest": "adler32=xyz"},
        {"Digest": "adler32=123456789"},
        {"Content-MD5": "AAAA"},
        {"Repr-Digest": "sha-256=:%%:"},
        {"Digest": "adler32=00000001", "Repr-Digest": "adler=:AAAAAg==:"},
    ],
)
def test_malformed_announcements(headers: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        digests.announced(headers)


def entry(size: int = 9, mtime_ns: int = 100 * NS + 5, inode: int = 3) -> Entry:
    return Entry("f", Kind.FILE, size, mtime_ns, 0, inode, 1, 0o644, 1, 1, 1)


VALUE = bytes.fromhex("091e01de")


def test_the_shared_attribute_is_xrootds() -> None:
    packed = records.pack_shared("adler32", VALUE, 1795171522, 3)
    assert packed == struct.pack(">16sqihbb", b"adler32", 1795171522, 3, 0, 0, 4) + VALUE.ljust(64, b"\0")
    assert records.unpack_shared(packed) == ("adler32", VALUE, 1795171522, 3)
    assert records.unpack_shared(packed[:40]) is None


def test_what_we_keep_is_known_again() -> None:
    kept = records.to_keep({"adler32": VALUE, "sha-256": b"s" * 32}, 9, 3, 100 * NS + 5, 100 * NS + 5)
    assert set(kept) == {"edged.digests", "XrdCks.adler32"}
    assert records.known(kept, entry()) == {"adler32": VALUE, "sha-256": b"s" * 32}


@pytest.mark.parametrize(
    "changed", [entry(size=10), entry(mtime_ns=100 * NS + 6), entry(inode=4), entry(mtime_ns=101 * NS)]
)
def test_stale_records_are_not_served(changed: Entry) -> None:
    kept = records.to_keep({"adler32": VALUE}, 9, 3, 100 * NS + 5, 100 * NS + 5)
    assert records.known(kept, changed) == {}


def test_xrootds_own_record() -> None:
    late = {"XrdCks.adler32": records.pack_shared("adler32", VALUE, 100, 2)}
    assert records.known(late, entry()) == {"adler32": VALUE}
    same_second = {"XrdCks.adler32": records.pack_shared("adler32", VALUE, 100, 0)}
    assert records.known(same_second, entry()) == {}  # the file may have changed within that second
    other_name = {"XrdCks.adler32": records.pack_shared("crc32c", VALUE, 100, 2)}
    assert records.known(other_name, entry()) == {}


@given(st.binary(max_size=120), st.binary(max_size=120))
def test_damaged_records_count_as_none(shared: bytes, ours: bytes) -> None:
    found = records.known({"XrdCks.adler32": shared, "edged.digests": ours}, entry())
    assert all(len(value) <= 64 for value in found.values())
