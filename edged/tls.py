"""TLS contexts, and certificates that are read again when their files change."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from cryptography import x509

from edged import metrics, systemd
from edged.config.site import Tls
from edged.errors import ConfigError
from edged.logs import get_logger

log = get_logger("edged.tls")

CHECK_PERIOD_S = 30.0
EXPIRY = metrics.gauge(
    "tls_certificate_expiry_timestamp_seconds",
    "When the host certificate in use expires, Unix seconds.",
    across=metrics.Across.LEAST,
)
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class ServerTls:
    """One server context; ``watch()`` loads a renewed certificate into it without a restart."""

    def __init__(self, tls: Tls) -> None:
        self.certificate, self.key = _files(tls)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = _VERSIONS[tls.minimum]
        self.context.set_alpn_protocols(["http/1.1"])
        self.context.options |= ssl.OP_NO_RENEGOTIATION
        if tls.ca_directory is not None:
            self.context.load_verify_locations(capath=str(tls.ca_directory))
            self.context.verify_mode = ssl.CERT_OPTIONAL
            self.context.verify_flags |= ssl.VerifyFlags.VERIFY_ALLOW_PROXY_CERTS
            # a resumed session keeps the client's certificate but not its verified chain, where its owner is
            self.context.options |= ssl.OP_NO_TICKET
            self.context.num_tickets = 0
        self._seen = self._stamp()
        self.load()

    def load(self) -> None:
        """Read certificate and key. Raises ConfigError when they cannot be used."""
        chain = _read("tls.certificate", self.certificate)
        _read("tls.key", self.key)
        try:
            leaf = x509.load_pem_x509_certificates(chain)[0]
        except ValueError as error:
            raise ConfigError([f"tls.certificate: {self.certificate}: no certificate in PEM"]) from error
        try:
            self.context.load_cert_chain(self.certificate, self.key, password=_refused)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            mismatch = getattr(error, "reason", None) == "KEY_VALUES_MISMATCH"
            why = (
                f"is not the key of {self.certificate}" if mismatch else "no key in PEM without a passphrase"
            )
            raise ConfigError([f"tls.key: {self.key}: {why}"]) from error
        EXPIRY.set(leaf.not_valid_after_utc.timestamp())

    def _stamp(self) -> tuple[int, int]:
        try:
            return self.certificate.stat().st_mtime_ns, self.key.stat().st_mtime_ns
        except OSError:
            return (0, 0)

    def refresh(self) -> bool:
        """Load again if the files changed; a broken pair leaves the working one in place."""
        stamp = self._stamp()
        if stamp in (self._seen, (0, 0)):
            return False
        try:
            probe = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            probe.load_cert_chain(self.certificate, self.key, password=_refused)
            self.load()
        except (OSError, ValueError, ConfigError) as error:
            log.warning("new certificate refused, the old one stays", extra={"reason": str(error)})
            return False
        self._seen = stamp
        log.info("certificate loaded", extra={"file": str(self.certificate)})
        return True

    async def watch(self) -> None:
        """Look for a renewed certificate every 30 s."""
        while True:
            await asyncio.sleep(CHECK_PERIOD_S)
            await asyncio.to_thread(self.refresh)


def _read(path: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: {file}: {error.strerror}"]) from error


def _refused() -> str:
    """OpenSSL would ask the terminal for a passphrase."""
    raise ValueError("the key has a passphrase")


def _files(tls: Tls) -> tuple[Path, Path]:
    certificate = systemd.credential("tls.crt") or tls.certificate  # a unit may be unable to read the key
    key = systemd.credential("tls.key") or tls.key
    if certificate is None or key is None:
        raise ConfigError(["tls.certificate: missing, with tls.key (or credentials tls.crt and tls.key)"])
    return certificate, key


def client_context(tls: Tls, ca_file: Path | None = None) -> ssl.SSLContext:
    """A verifying client context: the given CA bundle, else the configured one, else the system's."""
    bundle = ca_file or tls.ca_file
    context = ssl.create_default_context(cafile=str(bundle) if bundle else None)
    context.minimum_version = _VERSIONS[tls.minimum]
    return context
