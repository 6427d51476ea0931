"""X.509 identities of grids: RFC 3820 proxies, subjects the OpenSSL way (``/DC=org/CN=alice``). Pure.

Signatures of a chain that came by TLS were checked by OpenSSL in the handshake, with the proxies' name
and path-length rules; what is looked at here is what the chain says. ``linked`` checks signatures of
chains that came another way (delegations).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID, ObjectIdentifier

from edged.errors import BadRequest, Unauthenticated

PROXY_CERT_INFO = ObjectIdentifier("1.3.6.1.5.5.7.1.14")  # RFC 3820 §3.8
INHERIT_ALL = bytes.fromhex("06082b06010505071501")  # id-ppl-inheritAll, DER
LIMITED = bytes.fromhex("060a2b060104019b50010109")  # Globus' "limited" policy, 1.3.6.1.4.1.3536.1.1.1.9
MAX_CHAIN = 16
MAX_PEM = 128 * 1024

_SHORT = {
    NameOID.COMMON_NAME: "CN",
    NameOID.COUNTRY_NAME: "C",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.LOCALITY_NAME: "L",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.USER_ID: "UID",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.SURNAME: "SN",
    NameOID.GIVEN_NAME: "GN",
    NameOID.TITLE: "title",
    NameOID.STREET_ADDRESS: "street",
    NameOID.POSTAL_CODE: "postalCode",
}
_SPELLINGS = {"email": "emailAddress", "e": "emailAddress", "userid": "UID", "s": "ST"}
_RELATIVE = re.compile(r"/([A-Za-z0-9.]+)=")


@dataclass(frozen=True, slots=True)
class Proven:
    """Whom a chain speaks for: the end entity's ``subject``, until its first certificate ends (Unix s)."""

    subject: str
    ends_at: float
    proxies: int
    limited: bool


def oneline(name: x509.Name) -> str:
    """``/DC=org/DC=example/CN=alice``, as OpenSSL and grid-mapfiles write it."""
    return "".join(f"/{_SHORT.get(part.oid, part.oid.dotted_string)}={part.value!s}" for part in name)


def normal(subject: str) -> str:
    """A subject somebody typed, with the attribute names ``oneline`` uses."""
    return _RELATIVE.sub(lambda m: f"/{_SPELLINGS.get(m[1].lower(), m[1])}=", subject)


def policy_of(certificate: x509.Certificate) -> bytes | None:
    """The DER of a proxy's ProxyCertInfo; None for what is no proxy."""
    for extension in certificate.extensions:
        if extension.oid == PROXY_CERT_INFO:
            value = extension.value
            return value.value if isinstance(value, x509.UnrecognizedExtension) else value.public_bytes()
    return None


def proven(chain: Sequence[x509.Certificate]) -> Proven:
    """Who stands behind a verified chain, leaf first. Raises Unauthenticated.

    A limited proxy is taken: brokers send jobs with what was delegated to them, and those are often
    limited. An independent one, or one under a policy we cannot read, carries none of its issuer's rights
    (RFC 3820 §3.8.2).
    """
    limited = False
    ends_at = float("inf")
    for number, certificate in enumerate(chain[:MAX_CHAIN]):
        ends_at = min(ends_at, certificate.not_valid_after_utc.timestamp())
        policy = policy_of(certificate)
        if policy is None:
            return Proven(oneline(certificate.subject), ends_at, number, limited)
        if LIMITED in policy:
            limited = True
        elif INHERIT_ALL not in policy:
            raise Unauthenticated("the proxy's policy gives it none of its owner's rights")
    raise Unauthenticated("the certificate chain has no end entity")


def read_chain(pem: bytes) -> list[x509.Certificate]:
    """Certificates in PEM, leaf first. Raises BadRequest."""
    if len(pem) > MAX_PEM:
        raise BadRequest(f"a certificate chain of over {MAX_PEM} bytes")
    try:
        chain = x509.load_pem_x509_certificates(pem)
        _ = [certificate.extensions for certificate in chain]  # parsed late: fail here and not later
    except ValueError as error:
        raise BadRequest("not a PEM certificate chain", detail=str(error)) from None
    if len(chain) > MAX_CHAIN:
        raise BadRequest(f"more than {MAX_CHAIN} certificates in a chain")
    return chain


def linked(chain: Sequence[x509.Certificate], now: float) -> Proven:
    """The same for a chain that nobody verified: every proxy signed by the next one, all valid now.

    The end entity's own certificate is not checked against any CA here. Raises BadRequest.
    """
    try:
        found = proven(chain)
    except (Unauthenticated, ValueError) as error:
        raise BadRequest(str(error)) from None
    for one, issuer in pairwise(chain[: found.proxies + 1]):
        try:
            one.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            raise BadRequest("the chain does not hold together: a proxy is not signed by the next") from None
        if list(one.subject)[:-1] != list(issuer.subject):  # RFC 3820 §3.4
            raise BadRequest("a proxy's subject is not its issuer's and one name more")
    moment = datetime.fromtimestamp(now, UTC)
    for certificate in chain[: found.proxies + 1]:
        if not certificate.not_valid_before_utc.timestamp() - 300 <= now <= found.ends_at:
            raise BadRequest(f"the chain is not valid now ({moment:%Y-%m-%dT%H:%M:%SZ})")
    return found
