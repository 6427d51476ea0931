"""Subjects, proxies, revocation lists and signing policies."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edged.config import parse
from edged.errors import BadRequest, ConfigError, Unauthenticated, Unavailable
from edged.identity.proxies import linked, normal, oneline, proven, read_chain
from edged.identity.revocation import CaDirectory, signing_policies
from tests.support.gridca import INDEPENDENT, NOW, Credential, GridCa, limited, proxy

ALICE = "/DC=org/DC=edged-test/CN=alice"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> GridCa:
    return GridCa(tmp_path_factory.mktemp("grid") / "certificates")


@pytest.fixture(scope="module")
def alice(grid: GridCa) -> Credential:
    return grid.user("alice")


def chain(grid: GridCa, one: Credential) -> list[object]:
    return [one.certificate, *one.chain, grid.certificate]


def test_who_stands_behind_a_chain(grid: GridCa, alice: Credential) -> None:
    deep = proxy(limited(proxy(alice)))
    found = proven(chain(grid, deep))  # type: ignore[arg-type]
    assert (found.subject, found.proxies, found.limited) == (ALICE, 3, True)
    assert found.ends_at == deep.certificate.not_valid_after_utc.timestamp()
    assert proven([alice.certificate]).subject == oneline(alice.certificate.subject) == ALICE
    with pytest.raises(Unauthenticated, match="none of its owner's rights"):
        proven(chain(grid, proxy(alice, policy=INDEPENDENT)))  # type: ignore[arg-type]
    with pytest.raises(Unauthenticated, match="no end entity"):
        proven([proxy(alice).certificate])


def test_spellings_of_subjects() -> None:
    assert normal("/C=x/Email=a@b/USERID=u/CN=a/b=c") == "/C=x/emailAddress=a@b/UID=u/CN=a/b=c"


def test_a_chain_that_nobody_verified(alice: Credential) -> None:
    good = proxy(proxy(alice))
    assert linked([good.certificate, *good.chain], time.time()).subject == ALICE
    with pytest.raises(BadRequest, match="hold together"):
        linked([proxy(proxy(alice)).certificate, *good.chain], time.time())
    old = proxy(alice, hours=-1)
    with pytest.raises(BadRequest, match="not valid now"):
        linked([old.certificate, *old.chain], time.time())
    for text in (
        b"",
        b"garbage",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"x" * 200_000,
    ):
        with pytest.raises(BadRequest):
            read_chain(text)


def checked(grid: GridCa, one: Credential, rule: str = "if-present") -> None:
    CaDirectory(grid.directory, rule).check(chain(grid, one))  # type: ignore[arg-type]


def test_revocation(tmp_path: Path) -> None:
    grid = GridCa(tmp_path / "certificates")
    alice, bob = grid.user("alice"), grid.user("bob")
    checked(grid, proxy(alice))
    with pytest.raises(Unavailable, match="at hand"):
        checked(grid, alice, "required")
    grid.revoked.append(alice.certificate.serial_number)
    grid.crl()
    checked(grid, proxy(bob), "required")
    checked(grid, alice, "off")
    with pytest.raises(Unauthenticated, match="revoked"):
        checked(grid, proxy(proxy(alice)))
    grid.crl(next_update=NOW)
    with pytest.raises(Unavailable, match="out of date"):
        checked(grid, bob)
    (grid.directory / f"{grid.hash}.r0").write_bytes(b"half writ")
    checked(grid, bob)


def test_a_list_signed_by_another_key_says_nothing(tmp_path: Path) -> None:
    grid, other = GridCa(tmp_path / "a"), GridCa(tmp_path / "b")
    bob = grid.user("bob")
    other.revoked.append(bob.certificate.serial_number)
    other.crl()
    (grid.directory / f"{grid.hash}.r0").write_bytes((other.directory / f"{other.hash}.r0").read_bytes())
    checked(grid, bob)


def test_signing_policies(tmp_path: Path) -> None:
    grid = GridCa(tmp_path / "certificates")
    grid.policy("/DC=org/DC=edged-test/CN=al*", "/DC=nowhere/*")
    checked(grid, proxy(grid.user("alice")))
    with pytest.raises(Unauthenticated, match="may not speak"):
        checked(grid, proxy(grid.user("mallory")))
    text = "# x\naccess_id_CA  X509  '/C=a/CN=b'\npos_rights globus CA:sign\n"
    text += 'cond_subjects globus \'"/C=a/*" "/C=b/*"\'\n'
    assert signing_policies(text) == {"/C=a/CN=b": ["/C=a/*", "/C=b/*"]}


def test_the_configuration_says_what_is_missing() -> None:
    tree = {
        "site": {"name": "T"},
        "issuer": [{"url": "https://i.example/", "audience": ["a"], "vo": "cms"}],
        "mapping": [{"issuer": "https://i.example/", "account": "cmsprd"}],
        "jobs": {"tls": False, "arc": {"subjects": {ALICE: "cmsprd"}}},
    }
    with pytest.raises(ConfigError) as caught:
        parse(tree)
    assert any("identity.assertions" in one for one in caught.value.problems)
    assert any("tls.ca_directory" in one for one in caught.value.problems)
    tree["jobs"] = {"arc": {"subjects": {"alice": "cmsprd"}}}
    with pytest.raises(ConfigError, match="not a subject"):
        parse(tree)
