"""What paths below /cvmfs/ name, and what hashes to a name."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cache import names
from services.cache.names import DocumentPath, GeoPath, ObjectName, ObjectPath

HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (f"data/{HEX[:2]}/{HEX[2:]}", f"{HEX[:2]}/{HEX[2:]}"),
        (f"data/{HEX[:2]}/{HEX[2:]}C", f"{HEX[:2]}/{HEX[2:]}"),
        (f"data/{HEX[:2]}/{HEX[2:]}-rmd160", f"{HEX[:2]}/{HEX[2:]}-rmd160"),
        (f"data/{HEX[:2]}/{HEX[2:]}-shake128P", f"{HEX[:2]}/{HEX[2:]}-shake128"),
        (f".cvmfsalt-{HEX}C", f"{HEX[:2]}/{HEX[2:]}"),
    ],
)
def test_objects_are_known_by_their_hash(path: str, key: str) -> None:
    found = names.parse(f"/cvmfs/software.example.org/{path}".encode())
    assert isinstance(found, ObjectPath)
    assert found.name == ObjectName(key)


@pytest.mark.parametrize(
    "path",
    [
        f"data/{HEX}",
        f"data/{HEX[:2]}/{HEX[2:].upper()}",
        f"data/{HEX[:2]}/{HEX[2:-1]}",
        f"data/{HEX[:2]}/{HEX[2:]}-sha256",
        f"data/{HEX[:2]}/{HEX[2:]}-md5",
        f"data/{HEX[:2]}/{HEX[2:]}CC",
        f"data/../data/{HEX[:2]}/{HEX[2:]}",
        f"data/{HEX[:2]}/{HEX[2:]}?x=1",
        ".cvmfspublished/",
        ".cvmfsunknown",
        "",
    ],
)
def test_other_forms_name_nothing(path: str) -> None:
    found = names.parse(f"/cvmfs/software.example.org/{path}".encode())
    assert found is None or (isinstance(found, ObjectPath) and path == f"data/{HEX}")


def test_documents_and_questions_of_geography() -> None:
    document = names.parse(b"/cvmfs/a.org/.cvmfspublished")
    assert document == DocumentPath("a.org", b"/cvmfs/a.org/.cvmfspublished", ".cvmfspublished")
    geo = names.parse(b"/cvmfs/a.org/api/v1.0/geo/proxy:3128/one.org,two.org")
    assert isinstance(geo, GeoPath)
    assert geo.servers == ("one.org", "two.org")
    assert isinstance(names.parse(b"/cvmfs/info/v1/repositories.json"), DocumentPath)


@given(st.binary(max_size=4096))
def test_each_algorithm_recognises_its_own(data: bytes) -> None:
    digests = {
        "": hashlib.sha1(data).hexdigest(),
        "-rmd160": hashlib.new("ripemd160", data).hexdigest(),
        "-shake128": hashlib.shake_128(data).hexdigest(20),
        "-sha256": hashlib.sha256(data).hexdigest(),
    }
    for algorithm, digest in digests.items():
        name = ObjectName.of(digest, algorithm)
        assert (name.digest, name.algorithm) == (digest, algorithm)
        assert name.matches(data)
        assert not name.matches(data + b"x")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_path_or_not(data: bytes) -> None:
    names.parse(b"/cvmfs/" + data)
