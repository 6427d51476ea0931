"""Every attack on a token that we know of, each refused with its own clear reason."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edged.config import parse
from edged.errors import EdgeError, Unauthenticated, Unavailable, Upstream
from edged.identity.judge import Judge
from edged.identity.keys import KeySet, read_jwks
from edged.identity.tokens import UnknownKey, prove, take_apart

ISSUER, AUDIENCE = "https://issuer.example/", "https://edge.example.org"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
KEYS = read_jwks(
    json.dumps(
        {
            "keys": [
                {
                    **json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key())),
                    "kid": "rsa",
                    "use": "sig",
                },
                {
                    **json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key())),
                    "kid": "ec",
                    "alg": "ES256",
                },
            ]
        }
    ).encode()
)


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    full = {
        "iss": ISSUER,
        "sub": "alice",
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + 3600,
        "jti": "t1",
        "wlcg.ver": "1.0",
        **changes,
    }
    return {name: value for name, value in full.items() if value is not None}


def token(
    header: dict[str, Any] | None = None, *, key: Any = EC, algorithm: str = "ES256", **changes: Any
) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers={"kid": "ec", **(header or {})})


def b64(text: str | bytes) -> str:
    raw = text.encode() if isinstance(text, str) else text
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw(header: str, payload: str, key: ec.EllipticCurvePrivateKey = EC) -> str:
    """A token of any text at all, rightly signed."""
    signed = f"{b64(header)}.{b64(payload)}"
    signature = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256).sign(signed.encode(), key)
    return f"{signed}.{b64(signature)}"


def hmac_with_the_public_key() -> str:
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'rsa'}))}.{b64(json.dumps(claims()))}"
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    return f"{signed}.{b64(hmac.sign(signed.encode(), pem))}"


def judge(**issuer: Any) -> Judge:
    return Judge(
        parse(
            {
                "site": {"name": "T"},
                "issuer": [{"url": ISSUER, "audience": [AUDIENCE], "vo": "cms", **issuer}],
                "mapping": [{"issuer": ISSUER, "account": "cms"}],
            }
        )
    )


def reason(made: str, keys: KeySet = KEYS, **issuer: Any) -> str:
    """Why the whole decision refuses ``made``; fails when it does not."""
    site = judge(**issuer)
    with pytest.raises(EdgeError) as refused:
        site.decide(site.prove(made, lambda _: keys, time.time()), lambda _: None)
    assert isinstance(refused.value, Unauthenticated)
    assert not made or made not in str(refused.value)
    return refused.value.message


HEADER = '{"alg":"ES256","kid":"ec"}'


def _now() -> int:
    return int(time.time())


ATTACKS: list[tuple[str, Callable[[], str], str]] = [
    (
        "alg none",
        lambda: f"{b64(json.dumps({'alg': 'none', 'kid': 'ec'}))}.{b64(json.dumps(claims()))}.",
        "none",
    ),
    (
        "alg None",
        lambda: f"{b64(json.dumps({'alg': 'NoNe', 'kid': 'ec'}))}.{b64(json.dumps(claims()))}.",
        "NoNe",
    ),
    ("HS256 with the public key", hmac_with_the_public_key, "HS256"),
    ("alg is a list", lambda: raw('{"alg":["ES256"],"kid":"ec"}', json.dumps(claims())), "algorithm"),
    ("no alg", lambda: raw('{"kid":"ec"}', json.dumps(claims())), "algorithm"),
    ("no kid", lambda: jwt.encode(claims(), EC, algorithm="ES256"), "kid"),
    ("kid is a number", lambda: raw('{"alg":"ES256","kid":1}', json.dumps(claims())), "kid"),
    ("kid is empty", lambda: token({"kid": ""}), "kid"),
    ("foreign kid", lambda: token({"kid": "elsewhere"}), "does not publish"),
    ("kid is a path", lambda: token({"kid": "../../dev/null"}), "does not publish"),
    ("another key under a known kid", lambda: token(key=OTHER), "signature is wrong"),
    ("RS256 under an EC kid", lambda: token(key=RSA, algorithm="RS256"), "RS256"),
    ("jku", lambda: token({"jku": "https://evil.example/jwks"}), "jku"),
    ("x5u", lambda: token({"x5u": "https://evil.example/cert"}), "x5u"),
    ("x5c", lambda: token({"x5c": ["MIIB"]}), "x5c"),
    ("jwk", lambda: token({"jwk": json.loads(jwt.algorithms.ECAlgorithm.to_jwk(OTHER.public_key()))}), "jwk"),
    ("crit", lambda: token({"crit": ["exp"], "exp": 1}), "crit"),
    ("b64", lambda: raw('{"alg":"ES256","kid":"ec","b64":false}', json.dumps(claims())), "b64"),
    ("a logout token", lambda: token({"typ": "logout+jwt"}), "typ"),
    ("no audience", lambda: token(aud=None), "without audience"),
    ("empty audience", lambda: token(aud=[]), "without audience"),
    ("wrong audience", lambda: token(aud="https://other.example"), "another audience"),
    ("audience of other case", lambda: token(aud=AUDIENCE.upper()), "another audience"),
    ("any-audience not configured", lambda: token(aud="https://wlcg.cern.ch/jwt/v1/any"), "another audience"),
    ("audience is an object", lambda: raw(HEADER, json.dumps(claims(aud={"a": AUDIENCE}))), "aud"),
    ("audience list of numbers", lambda: raw(HEADER, json.dumps(claims(aud=[1, AUDIENCE]))), "aud"),
    ("foreign issuer", lambda: token(iss="https://other.example/"), "does not trust"),
    ("issuer without slash", lambda: token(iss=ISSUER.rstrip("/")), "does not trust"),
    ("no issuer", lambda: token(iss=None), "issuer"),
    ("issuer is a list", lambda: raw(HEADER, json.dumps(claims(iss=[ISSUER]))), "issuer"),
    ("expired now", lambda: token(exp=_now() - 1, iat=_now() - 100), "expired"),
    ("no exp", lambda: token(exp=None), "exp"),
    ("exp is text", lambda: raw(HEADER, json.dumps(claims(exp="9999999999"))), "exp"),
    ("exp is true", lambda: raw(HEADER, json.dumps(claims(exp=True))), "exp"),
    (
        "exp is infinite",
        lambda: raw(HEADER, json.dumps(claims()).replace(str(claims()["exp"]), "1e999")),
        "exp",
    ),
    ("exp is NaN", lambda: raw(HEADER, f'{{"iss":"{ISSUER}","exp":NaN}}'), "JSON"),
    ("lives too long", lambda: token(exp=_now() + 40 * 86400), "longer"),
    ("exp in the next millennia", lambda: token(exp=10**15), "exp"),
    ("no iat", lambda: token(iat=None), "iat"),
    ("from the future", lambda: token(iat=_now() + 600), "future"),
    ("not yet valid", lambda: token(nbf=_now() + 120), "nbf"),
    ("no jti", lambda: token(jti=None), "jti"),
    ("no wlcg.ver", lambda: raw(HEADER, json.dumps(claims(**{"wlcg.ver": None}))), "wlcg.ver"),
    ("no sub", lambda: raw(HEADER, json.dumps(claims(sub=None))), "sub"),
    ("long sub", lambda: token(sub="a" * 256), "255"),
    ("sub not ASCII", lambda: token(sub="al\u00eece"), "ASCII"),
    ("sub with a newline", lambda: token(sub="alice\nallowed=true"), "ASCII"),
    ("sub is an object", lambda: raw(HEADER, json.dumps(claims(sub={"a": 1}))), "sub"),
    ("storage scope without path", lambda: token(scope="storage.read"), "no path"),
    ("one good, one without path", lambda: token(scope="storage.read:/ storage.modify:"), "no path"),
    ("relative path", lambda: token(scope="storage.read:store"), "begin with /"),
    ("dot segments", lambda: token(scope="storage.read:/store/../.."), "normalised"),
    ("hidden dot segments", lambda: token(scope="storage.read:/store/%2e%2e"), "normalised"),
    ("hidden slash", lambda: token(scope="storage.read:/a%2Fb"), "not allowed"),
    ("NUL in the path", lambda: token(scope="storage.read:/a%00b"), "not allowed"),
    ("scope is a list", lambda: token(scope=["storage.read:/"]), "scope"),
    (
        "groups is an object",
        lambda: raw(HEADER, json.dumps(claims(**{"wlcg.groups": {"/cms": True}}))),
        "wlcg.groups",
    ),
    ("groups of numbers", lambda: raw(HEADER, json.dumps(claims(**{"wlcg.groups": [1]}))), "wlcg.groups"),
    ("group with a lone surrogate", lambda: token(groups=["/cms\ud800"]), "groups"),
    ("a name twice", lambda: raw(HEADER, f'{{"iss":"{ISSUER}","sub":"a","sub":"b"}}'), "JSON"),
    ("a header name twice", lambda: raw('{"alg":"none","alg":"ES256","kid":"ec"}', "{}"), "JSON"),
    ("payload is a list", lambda: raw(HEADER, "[]"), "JSON"),
    ("payload not UTF-8", lambda: f"{b64(HEADER)}.{b64(bytes([255, 254, 123]))}.{b64('x')}", "JSON"),
    ("deep nesting", lambda: raw(HEADER, "[" * 5000), "JSON"),
    ("huge number", lambda: raw(HEADER, '{"iss":' + "9" * 5000 + "}"), "JSON"),
    ("JWE", lambda: "a.b.c.d.e", "signed token"),
    ("padding", lambda: token() + "=", "signed token"),
    ("trailing newline", lambda: token() + "\n", "signed token"),
    ("empty", lambda: "", "signed token"),
    ("1 MB", lambda: token(junk="x" * 1_000_000), "longer than 16384"),
]


@pytest.mark.parametrize(
    ("make", "word"), [(make, word) for _, make, word in ATTACKS], ids=[a[0] for a in ATTACKS]
)
def test_attack_is_refused(make: Callable[[], str], word: str) -> None:
    assert word in reason(make())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: token(aud="https://other.example"),
            f"for 'https://other.example'; this site takes '{AUDIENCE}'",
        ),
        (lambda: token(aud=["x" * 900]), f"for '{'x' * 199}; this site takes"),
        (lambda: token(exp=_now() - 1, iat=_now() - 100), "s ago by this machine's clock"),
        (lambda: token(iat=_now() + 600), "s from now by this machine's clock"),
    ],
)
def test_operators_are_told_by_how_much(make: Callable[[], str], words: str) -> None:
    """In the log and by `edged whoami`; what the wire says has none of it."""
    site = judge()
    with pytest.raises(Unauthenticated) as refused:
        site.decide(site.prove(make(), lambda _: KEYS, time.time()), lambda _: None)
    assert words in refused.value.detail
    assert words not in refused.value.message


@pytest.mark.parametrize(
    "made", [token(), token({"kid": "rsa"}, key=RSA, algorithm="PS256"), token(aud=["x", AUDIENCE])]
)
def test_honest_tokens_pass(made: str) -> None:
    site = judge()
    judged = site.decide(site.prove(made, lambda _: KEYS, time.time()), lambda _: None)
    assert judged.mapped.account == "cms"


def test_a_key_is_not_looked_for_before_the_issuer_is_trusted() -> None:
    asked: list[str] = []

    def keys(issuer: str) -> KeySet:
        asked.append(issuer)
        return KEYS

    with pytest.raises(Unauthenticated, match="does not trust"):
        judge().prove(token(iss="https://other.example/"), keys, time.time())
    assert not asked


def test_nbf_has_a_minute_of_grace_and_exp_none() -> None:
    site, now = judge(), float(_now())
    site.prove(token(nbf=now + 59), lambda _: KEYS, now)
    made = token(exp=now + 100)
    site.prove(made, lambda _: KEYS, now + 99.9)
    with pytest.raises(Unauthenticated, match="expired"):
        site.prove(made, lambda _: KEYS, now + 100)


def test_no_key_known_is_another_thing_than_a_wrong_key() -> None:
    with pytest.raises(Unavailable, match="no key"):
        judge().prove(token(), lambda _: KeySet(), time.time())


def test_unknown_kid_tells_whom_to_ask() -> None:
    with pytest.raises(UnknownKey) as unknown:
        prove(take_apart(token({"kid": "new"})), KEYS)
    assert (unknown.value.issuer, unknown.value.kid) == (ISSUER, "new")


def test_audience_optional_is_for_groups_only() -> None:
    site = judge(audience_optional=True)
    site.decide(site.prove(token(aud=None), lambda _: KEYS, time.time()), lambda _: None)
    assert "capabilities" in reason(token(aud=None, scope="compute.create"), audience_optional=True)


def test_scitokens() -> None:
    made = token(ver="scitoken:2.0", scope="read:/store write:/store/user")
    site = judge(profile="scitokens")
    judged = site.decide(site.prove(made, lambda _: KEYS, time.time()), lambda _: None)
    assert [c.action.value for c in judged.mapped.capabilities] == [
        "storage.read",
        "storage.create",
        "storage.modify",
    ]
    assert "no path" in reason(token(ver="scitoken:2.0", scope="read"), profile="scitokens")
    assert "ver" in reason(token(), profile="scitokens")


def test_unsound_keys_are_left_out() -> None:
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    entries = [
        {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(small.public_key())), "kid": "small"},
        {"kty": "oct", "kid": "hmac", "k": "c2VjcmV0"},
        {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key()))},
        {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key())), "kid": "enc", "use": "enc"},
        {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key())), "kid": "lies", "alg": "HS256"},
        "not an object",
    ]
    good = {**json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(edwards)), "kid": "good"}
    assert read_jwks(json.dumps({"keys": [*entries, good]}).encode()).kids() == {"good"}
    for document in (b"", b"[]", b"{}", b'{"keys":{}}', json.dumps({"keys": entries}).encode(), b"[" * 9000):
        with pytest.raises(Upstream):
            read_jwks(document)
