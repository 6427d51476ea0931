"""The probes' own key: its tokens log in to our servers and open the probe directory, nothing else.

Made anew at each start and left in a file that only root and our user read, for ``edged doctor``.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.algorithms import ECAlgorithm

from services.storage.xrootd.render import PROBE_ISSUER

KID = "edged-probe"
LIFE_S = 600


class ProbeKey:
    """Signs and verifies the probes' tokens."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def make(cls) -> ProbeKey:
        """A fresh one."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, file: Path) -> ProbeKey:
        """The running view's. Raises OSError when we may not, or nothing runs."""
        key = load_pem_private_key(file.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(key)

    def save(self, file: Path) -> None:
        """For ``load``; readable by our user and root."""
        file.unlink(missing_ok=True)
        content = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(content)

    def jwk(self) -> dict[str, Any]:
        """The public half."""
        entry: dict[str, Any] = json.loads(ECAlgorithm.to_jwk(self._key.public_key()))
        return {**entry, "kid": KID, "alg": "ES256", "use": "sig"}

    def token(self, audience: str) -> str:
        """A token for one probe."""
        now = int(time.time())
        claims = {
            "iss": PROBE_ISSUER,
            "sub": "edged-probe",
            "aud": audience,
            "iat": now,
            "nbf": now - 5,
            "exp": now + LIFE_S,
            "jti": secrets.token_hex(8),
            "wlcg.ver": "1.0",
            "scope": "storage.read:/ storage.modify:/",
        }
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": KID})

    def verify(self, token: str) -> float | None:
        """When it expires (Unix seconds); None when it is not one of ours. The audience is the login's matter."""
        try:
            claims = jwt.decode(
                token,
                self._key.public_key(),
                algorithms=["ES256"],
                issuer=PROBE_ISSUER,
                options={"verify_aud": False, "require": ["exp", "iss"]},
            )
        except jwt.PyJWTError:
            return None
        return float(claims["exp"])
