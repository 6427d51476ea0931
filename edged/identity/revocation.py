"""Revocation lists and signing policies beside the CAs of a grid's certificate directory.

The directory is what IGTF distributions and fetch-crl keep: ``<hash>.0`` the CA, ``<hash>.r0`` its CRL,
``<hash>.signing_policy`` the subjects it may sign. OpenSSL verified the chain in the handshake without
lists: a CRL that is required everywhere would shut out every CA that publishes none.
"""

from __future__ import annotations

import fnmatch
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from edged.errors import Unauthenticated, Unavailable
from edged.identity.proxies import oneline, policy_of

LOOK_AGAIN_S = 5.0
MAX_CRL = 64 << 20

Rule = Literal["if-present", "required", "off"]


@dataclass(frozen=True, slots=True)
class _Lists:
    """What the directory had at one moment, by the issuer's subject."""

    stamp: tuple[tuple[str, int, int], ...]
    crls: dict[bytes, list[x509.CertificateRevocationList]]
    policies: dict[str, list[str]]


class CaDirectory:
    """One directory, read again when a file in it changes."""

    def __init__(self, directory: Path, rule: Rule) -> None:
        self._directory = directory
        self._rule = rule
        self._lists = _Lists((), {}, {})
        self._looked_at = float("-inf")
        self._lock = threading.Lock()

    def check(self, chain: Sequence[x509.Certificate]) -> None:
        """Whether any certificate of a verified chain, leaf first, is revoked or out of its CA's domain.

        Reads files: call it in a thread. Raises Unauthenticated, or Unavailable for a list out of date.
        """
        lists = self._current()
        for certificate, issuer in pairwise(chain):
            if policy_of(certificate) is not None:
                continue  # a proxy is signed by its owner, who publishes no list (RFC 3820 §4.1)
            _check_policy(lists, certificate)
            if self._rule != "off":
                self._check_revoked(lists, certificate, issuer)

    def _check_revoked(self, lists: _Lists, certificate: x509.Certificate, issuer: x509.Certificate) -> None:
        found = [crl for crl in lists.crls.get(_name(issuer), ()) if _signed(crl, issuer)]
        if not found:
            if self._rule == "required":
                raise Unavailable("no revocation list of your certificate's authority is at hand")
            return
        newest = max(found, key=lambda crl: crl.last_update_utc)
        if newest.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            raise Unauthenticated("the certificate has been revoked")
        ends = newest.next_update_utc
        if ends is not None and ends.timestamp() < time.time():
            raise Unavailable("the revocation list of your certificate's authority is out of date")

    def _current(self) -> _Lists:
        with self._lock:
            if time.monotonic() - self._looked_at > LOOK_AGAIN_S:
                stamp = _stamp(self._directory)
                if stamp != self._lists.stamp:
                    self._lists = _read(self._directory, stamp)
                self._looked_at = time.monotonic()
            return self._lists


def _name(certificate: x509.Certificate) -> bytes:
    return certificate.subject.public_bytes()


def _signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except (TypeError, ValueError, InvalidSignature):
        return False


def _stamp(directory: Path) -> tuple[tuple[str, int, int], ...]:
    found = []
    try:
        for file in sorted(directory.iterdir()):
            if re.search(r"\.(r\d+|signing_policy)$", file.name):
                status = file.stat()
                found.append((file.name, status.st_mtime_ns, status.st_size))
    except OSError as error:
        raise Unavailable("the certificate authorities cannot be read", detail=str(error)) from None
    return tuple(found)


def _read(directory: Path, stamp: tuple[tuple[str, int, int], ...]) -> _Lists:
    crls: dict[bytes, list[x509.CertificateRevocationList]] = {}
    policies: dict[str, list[str]] = {}
    for name, _, size in stamp:
        content = (directory / name).read_bytes() if size <= MAX_CRL else b""
        if name.endswith(".signing_policy"):
            policies.update(signing_policies(content.decode("utf-8", "replace")))
        elif (crl := _crl(content)) is not None:
            crls.setdefault(crl.issuer.public_bytes(), []).append(crl)
    return _Lists(stamp, crls, policies)


def _crl(content: bytes) -> x509.CertificateRevocationList | None:
    try:
        pem = b"-----BEGIN" in content[:4096]
        return x509.load_pem_x509_crl(content) if pem else x509.load_der_x509_crl(content)
    except ValueError:  # half written by fetch-crl: its CA's other list, or the next look
        return None


def signing_policies(text: str) -> dict[str, list[str]]:
    """Patterns of subjects by the CA they hold for. Globus' EACL format; only CA:sign counts."""
    found: dict[str, list[str]] = {}
    authority = ""
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(None, 2) if not line.lstrip().startswith("#") else []
        if len(words) < 3:
            continue
        if words[0] == "access_id_CA":
            authority = words[2].strip().strip("'\"")
            found.setdefault(authority, [])
        elif words[0] == "cond_subjects" and authority:
            listed = words[2].strip()
            inner = listed[1:-1] if listed[:1] == "'" else listed
            quoted = re.findall(r'"([^"]*)"', inner)
            found[authority] += quoted or [inner.strip()]
    return found


def _check_policy(lists: _Lists, certificate: x509.Certificate) -> None:
    """IGTF: a CA that comes with a policy speaks for the subjects named there and for no others."""
    authority = oneline(certificate.issuer)
    patterns = lists.policies.get(authority)
    if patterns is None or certificate.subject == certificate.issuer:
        return
    subject = oneline(certificate.subject)
    if not any(fnmatch.fnmatchcase(subject, _glob(pattern)) for pattern in patterns):
        raise Unauthenticated("the certificate's authority may not speak for this subject", detail=subject)


def _glob(pattern: str) -> str:
    """Policies know ``*`` alone."""
    return pattern.replace("[", "[[]").replace("?", "[?]")
