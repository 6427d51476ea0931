"""A plain XrdHttp with third-party copy, as another site runs it: no tokens, TLS of the tests' CA."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.storage import StorageSite, free_port, wait_for_port


class XrdHttp:
    """``url`` is where clients see ``root``."""

    def __init__(self, root: Path, port: int) -> None:
        self.root = root
        self.url = f"https://localhost:{port}"


@contextmanager
def xrdhttp(directory: Path, site: StorageSite) -> Iterator[XrdHttp]:
    """Running as user xrootd, trusting and certified by the CA of ``site``. It listens on every address."""
    for folder in (directory, directory / "data", directory / "admin", directory / "run"):
        folder.mkdir()
        shutil.chown(folder, "xrootd")
    host = site.ca.host("localhost", "127.0.0.1")
    key = directory / "key.pem"
    shutil.copy(host.key, key)
    shutil.chown(key, "xrootd")
    key.chmod(0o400)
    port = free_port()
    config = directory / "xrootd.cfg"
    config.write_text(
        f"all.export /\noss.localroot {directory / 'data'}\nxrd.port {port}\n"
        f"xrd.protocol XrdHttp:{port} libXrdHttp-5.so\nxrd.tls {host.certificate} {key}\n"
        f"xrd.tlsca certdir {site.ca_directory}\nhttp.exthandler xrdtpc libXrdHttpTPC-5.so\n"
        f"all.adminpath {directory / 'admin'}\nall.pidpath {directory / 'run'}\n"
        "ofs.persist auto\nxrootd.chksum max 2 adler32\n"
    )
    argv = ["xrootd", "-c", str(config), "-l", str(directory / "run" / "log")]
    environment = {**os.environ, "X509_CERT_DIR": str(site.ca_directory)}
    server = subprocess.Popen(argv, env=environment, user="xrootd", group="xrootd", cwd=directory)
    try:
        wait_for_port(port)
        yield XrdHttp(directory / "data", port)
    finally:
        server.terminate()
        server.wait(15)
