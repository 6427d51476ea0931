"""The host certificate: readable, in its time, for our name, and fitting its key."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta

from cryptography import x509

from edged.config import Config
from edged.config.site import Front
from edged.doctor import Finding
from edged.errors import EdgeError
from edged.tls import ServerTls

PART = "certificate"
SOON = timedelta(days=14)
RENEW = "renew it and put it at tls.certificate and tls.key; running services take it within 30 s"


async def findings(config: Config) -> list[Finding]:
    """Nothing when no configured front speaks TLS."""
    fronts = [getattr(config, name) for name in ("jobs", "storage", "egress", "portal", "identity")]
    if not any(isinstance(front, Front) and front.tls for front in fronts):
        return []
    return await asyncio.to_thread(_look, config)


def _look(config: Config) -> list[Finding]:
    try:
        tls = ServerTls(config.tls)
        chain = x509.load_pem_x509_certificates(tls.certificate.read_bytes())
    except (EdgeError, OSError, ValueError, ssl.SSLError) as error:
        return [Finding(PART, False, f"cannot be used: {error}", RENEW)]
    found = [dated(f"host certificate {tls.certificate}", chain[0], datetime.now(UTC))]
    if config.site.host:
        found.append(_named(chain[0], (config.site.host, *config.site.aliases)))
    return found


def dated(what: str, certificate: x509.Certificate, now: datetime) -> Finding:
    """Whether ``now`` lies well within the certificate's time."""
    left = certificate.not_valid_after_utc - now
    if certificate.not_valid_before_utc > now:
        begins = certificate.not_valid_before_utc
        return Finding(PART, False, f"{what}: not valid before {begins:%Y-%m-%d %H:%M}Z", "look at the clock")
    if left < timedelta(0):
        return Finding(PART, False, f"{what}: expired {certificate.not_valid_after_utc:%Y-%m-%d}", RENEW)
    text = f"{what}: valid until {certificate.not_valid_after_utc:%Y-%m-%d}, {left.days} days"
    return Finding(PART, left > SOON, text, RENEW)


def _named(certificate: x509.Certificate, names: tuple[str, ...]) -> Finding:
    try:
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        there = [*held.get_values_for_type(x509.DNSName), *map(str, held.get_values_for_type(x509.IPAddress))]
    except x509.ExtensionNotFound:
        there = []
    missing = [name for name in names if not any(_covers(pattern, name) for pattern in there)]
    if not missing:
        return Finding(PART, True, f"is for {', '.join(names)}")
    return Finding(
        PART,
        False,
        f"is not for {', '.join(missing)} (it has {', '.join(there) or 'no names'})",
        "ask the CA for one with all of site.host and site.aliases as subject alternative names",
    )


def _covers(pattern: str, name: str) -> bool:
    """RFC 6125 §6.4.3: a wildcard stands for the whole left-most label and nothing else."""
    pattern, name = pattern.lower(), name.lower()
    return pattern == name or (pattern.startswith("*.") and name.partition(".")[2] == pattern[2:])
