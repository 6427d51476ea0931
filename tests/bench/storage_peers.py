"""Other servers beside ours, for the storage benches: nginx, Apache mod_dav and XrdHttp, and CPU accounting.

Only CPU seconds of the servers are compared: rates on a shared machine lie. All processes of a server
count: ours are the front, accountd and the account's worker.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.accounts import is_root
from tests.support.local_accounts import CMSPRD
from tests.support.storage import StorageSite, free_port, wait_for_port

TICK = os.sysconf("SC_CLK_TCK")
GIB = 1 << 30


@dataclass(slots=True)
class Server:
    """A running server: where its files are, where they are seen, and its processes."""

    name: str
    url: str
    root: Path
    pid: int
    headers: tuple[str, ...] = ()

    def cpu_s(self) -> float:
        """CPU seconds of the process and all below it, ended children included."""
        return sum(_ticks(pid) for pid in tree(self.pid)) / TICK

    def memory(self) -> int:
        """Resident bytes of all its processes."""
        pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in tree(self.pid))
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(stat[1]), []).append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])


class Ground:
    """A directory with the servers started in it; all are stopped at the end."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack

    def edged(self, *, tls: bool = True, **settings: object) -> Server:
        """Ours, with a token, with everything by default but durability, which no peer here has."""
        site = StorageSite(
            self.directory / f"edged-{tls}",
            tls=tls,
            settings={"durable": False, **settings},
            log_level=os.environ.get("BENCH_LOG", "info"),
        )
        self._stack.enter_context(site)
        self.site = site
        return Server("edged", site.url, site.root, site.pid, ("-H", f"Authorization: Bearer {site.token()}"))

    def files(self, name: str) -> Path:
        root = self.directory / name
        root.mkdir(exist_ok=True)
        root.chmod(0o777)
        return root

    def _certificate(self) -> tuple[Path, Path]:
        host = self.site.ca.host("localhost", "127.0.0.1")
        return host.certificate, host.key

    def _start(
        self, name: str, argv: list[str], port: int, url: str, root: Path, user: str | None = None
    ) -> Server:
        log = (self.directory / f"{name}.log").open("ab")
        process = subprocess.Popen(
            argv, stdout=log, stderr=log, start_new_session=True, user=user, group=user, cwd=self.directory
        )

        def stop() -> None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            log.close()

        self._stack.callback(stop)
        wait_for_port(port)
        return Server(name, url, root, process.pid)

    def nginx(self, *, tls: bool = True) -> Server:
        """One worker, sendfile on, as packaged."""
        root, port = self.files("nginx"), free_port()
        certificate, key = self._certificate()
        secure = f"ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;"
        config = self.directory / f"nginx-{tls}.conf"
        config.write_text(
            f"daemon off; pid {self.directory}/nginx-{tls}.pid; error_log {self.directory}/nginx.err;"
            f"user {'root' if is_root() else ''} ; worker_processes 1; events {{ worker_connections 2000; }}\n"
            f"http {{ sendfile on; tcp_nopush on; access_log {self.directory}/access.log; "
            f"client_body_temp_path {root}/.tmp; client_max_body_size 0; client_body_buffer_size 128k;\n"
            f"server {{ listen 127.0.0.1:{port} {'ssl' if tls else ''}; {secure if tls else ''} root {root};"
            " location / { dav_methods PUT DELETE MKCOL COPY MOVE; create_full_put_path on; } } }\n"
        )
        scheme = "https" if tls else "http"
        argv = ["nginx", "-c", str(config), "-p", str(self.directory)]
        return self._start(f"nginx-{scheme}", argv, port, f"{scheme}://localhost:{port}", root)

    def apache(self) -> Server:
        """mod_dav over plain http, for listings."""
        root, port = self.files("apache"), free_port()
        modules = ["mpm_event", "authz_core", "dav", "dav_fs"]
        lines = [f"LoadModule {m}_module /usr/lib/apache2/modules/mod_{m}.so" for m in modules]
        lines += [
            f"ServerRoot {self.directory}",
            "ServerName localhost",
            f"Listen 127.0.0.1:{port}",
            f"PidFile {self.directory}/apache.pid",
            f"ErrorLog {self.directory}/apache.err",
            f"DavLockDB {self.directory}/davlock",
            "User nobody",
            "Group nogroup",
            f"DocumentRoot {root}",
            f"<Directory {root}>\nDav On\nRequire all granted\n</Directory>",
        ]
        config = self.directory / "apache.conf"
        config.write_text("\n".join(lines) + "\n")
        argv = ["apache2", "-f", str(config), "-DFOREGROUND"]
        return self._start("apache", argv, port, f"http://localhost:{port}", root)

    def xrootd(self) -> Server:
        """XrdHttp over TLS, without authorization. It listens on every address of the machine."""
        root, port = self.files("xrootd"), free_port()
        certificate, key = self._certificate()
        own_key = self.directory / "xrootd.key"
        shutil.copy(key, own_key)
        shutil.chown(own_key, "xrootd")
        own_key.chmod(0o400)
        for folder in ("xadmin", "xrun"):
            (self.directory / folder).mkdir()
            shutil.chown(self.directory / folder, "xrootd")
        config = self.directory / "xrootd.cfg"
        config.write_text(
            f"all.export /\noss.localroot {root}\nxrd.port {port}\nxrd.protocol XrdHttp:{port} libXrdHttp-5.so\n"
            f"xrd.tls {certificate} {own_key}\nxrd.tlsca certfile {self.site.ca.file}\n"
            f"all.adminpath {self.directory}/xadmin\nall.pidpath {self.directory}/xrun\nxrootd.async off\n"
        )
        argv = ["xrootd", "-c", str(config), "-l", str(self.directory / "xrun" / "log")]
        return self._start("xrdhttp", argv, port, f"https://localhost:{port}", root, user="xrootd")


@contextmanager
def ground() -> Iterator[Ground]:
    """Everything a bench needs, gone at its end."""
    base = Path(os.environ.get("BENCH_DIR", tempfile.gettempdir()))  # a disk file system, in its page cache
    directory = Path(tempfile.mkdtemp(prefix="edged-bench-", dir=base))
    directory.chmod(0o755)
    try:
        with ExitStack() as stack:
            yield Ground(directory, stack)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def curl(server: Server, *arguments: str) -> None:
    """One curl process; its answers must be good."""
    argv = ["curl", "-sSfk", "--retry", "5", "--retry-delay", "1", *server.headers, *arguments]
    subprocess.run(argv, check=True, capture_output=True, timeout=300)


def give(server: Server, file: Path) -> None:
    """Let the account own a file of ours."""
    if is_root() and server.name == "edged":
        os.chown(file, CMSPRD.uid, CMSPRD.uid)


def report(claim: str, ours: float, theirs: float, peer: str, bar: float, unit: str) -> None:
    """One line: the figure, the peer's, the ratio and the bar. Never fails."""
    ratio = ours / theirs if theirs else float("inf")
    met = "met" if ratio <= bar else "missed"
    print(
        f"{claim:34} {ours:9.4f} {unit:12} {peer} {theirs:9.4f}  ratio {ratio:5.2f}  bar {bar:4.2f} {met}",
        flush=True,
    )


def best(values: list[float]) -> float:
    """The least disturbed of several runs: the median of CPU seconds."""
    return sorted(values)[len(values) // 2]
