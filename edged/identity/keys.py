"""An issuer's public keys (JWKS, RFC 7517), read strictly and made ready for use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import Algorithm, get_default_algorithms

from edged.errors import Upstream

MAX_JWKS_BYTES = 96 * 1024  # fits one packet to the signer; real ones have a few KiB
MAX_KEYS = 64
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192  # a larger modulus makes every check a denial of service

_RSA = frozenset({"RS256", "RS384", "RS512", "PS256"})
_CURVES = {"secp256r1": frozenset({"ES256"}), "secp384r1": frozenset({"ES384"})}
_EDWARDS = frozenset({"EdDSA"})
ALGORITHMS = _RSA | {"ES256", "ES384"} | _EDWARDS

_checkers: dict[str, Algorithm] = {n: a for n, a in get_default_algorithms().items() if n in ALGORITHMS}

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """One verification key and the algorithms it may be used with."""

    kid: str
    key: PublicKey
    algorithms: frozenset[str]

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Whether ``signature`` over ``signed`` is this key's."""
        return bool(_checkers[algorithm].verify(signed, self.key, signature))


class KeySet:
    """The keys of one issuer, by ``kid``. Immutable; a refresh makes a new one."""

    def __init__(self, keys: tuple[PublishedKey, ...] = ()) -> None:
        self._named: dict[str, tuple[PublishedKey, ...]] = {}
        for key in keys:
            self._named[key.kid] = (*self._named.get(key.kid, ()), key)

    def named(self, kid: str) -> tuple[PublishedKey, ...]:
        """The keys published under ``kid`` (RFC 7517 §4.5 allows one per key type)."""
        return self._named.get(kid, ())

    def kids(self) -> frozenset[str]:
        """All key names."""
        return frozenset(self._named)

    def __len__(self) -> int:
        return len(self._named)


def read_jwks(document: bytes) -> KeySet:
    """The usable keys of a JWKS document; unusable ones are left out. Raises Upstream when there is none."""
    if len(document) > MAX_JWKS_BYTES:
        raise Upstream("the issuer's key document is too large")
    try:
        tree = msgspec.json.decode(document, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Upstream("the issuer's key document is not JSON", detail=str(error)) from error
    entries = tree.get("keys")
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise Upstream("the issuer's key document has no usable list of keys")
    keys = tuple(key for entry in entries if (key := _published(entry)) is not None)
    if not keys:
        raise Upstream("the issuer's key document has no key that we accept")
    return KeySet(keys)


def _published(entry: object) -> PublishedKey | None:
    """A key we accept: named, for signatures, asymmetric, of a sound size."""
    if not isinstance(entry, Mapping):
        return None
    kid = entry.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= 255 or entry.get("use", "sig") != "sig":
        return None
    if entry.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    public = {
        name: value for name, value in entry.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "alg")
    }
    try:
        key = jwt.PyJWK(public, algorithm=_algorithm_of(entry)).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    algorithms = _algorithms(key)
    if (stated := entry.get("alg")) is not None:  # a key published for one algorithm is for no other
        algorithms = algorithms & {stated if isinstance(stated, str) else ""}
    return PublishedKey(kid, key, algorithms) if algorithms else None


def _algorithm_of(entry: Mapping[str, Any]) -> str | None:
    """PyJWT wants a name to pick its parser by; which names may verify is ours to say."""
    if entry["kty"] == "RSA":
        return "RS256"
    if entry["kty"] == "OKP":
        return "EdDSA"
    return {"P-256": "ES256", "P-384": "ES384"}.get(str(entry.get("crv")))


def _algorithms(key: object) -> frozenset[str]:
    match key:
        case RSAPublicKey() if MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            return _RSA
        case EllipticCurvePublicKey():
            return _CURVES.get(key.curve.name, frozenset())
        case Ed25519PublicKey():
            return _EDWARDS
        case _:
            return frozenset()
