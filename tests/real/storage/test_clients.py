"""The clients of the grid and of the desk, as they are installed, against a running endpoint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.storage.conftest import tool
from tests.support.relay import TokenRelay
from tests.support.storage import StorageSite

DATA = b"The quick brown fox jumps over the lazy dog.\n" * 20000


@pytest.fixture(scope="module")
def environment(site: StorageSite) -> dict[str, str]:
    """What grid clients read: CA directory and token."""
    return {
        **os.environ,
        "X509_CERT_DIR": str(site.ca_directory),
        "BEARER_TOKEN": site.token(),
        "GFAL_PYTHONBIN": "/usr/bin/python3",  # gfal2-util takes the first python3 on PATH otherwise
        "HOME": str(site.directory),
    }


@pytest.fixture(scope="module")
def relay(site: StorageSite) -> Iterator[TokenRelay]:
    """For clients that cannot send a bearer token."""
    with TokenRelay(site, site.token()).running() as running:
        yield running


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A file to upload."""
    file = tmp_path / "local"
    file.write_bytes(DATA)
    return file


def run(
    *argv: str, env: dict[str, str] | None = None, cwd: Path | None = None, deadline_s: float = 60
) -> str:
    """stdout of a command that must succeed."""
    done = subprocess.run(
        argv, capture_output=True, text=True, env=env, cwd=cwd, timeout=deadline_s, check=False
    )
    assert done.returncode == 0, f"{argv[0]} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def fresh(site: StorageSite) -> str:
    """A new name below /cms."""
    return f"c{uuid.uuid4().hex[:8]}"


# --- curl


def test_curl_uploads_reads_back_and_deletes(site: StorageSite, local: Path, tmp_path: Path) -> None:
    name = fresh(site)
    base = [
        tool("curl"),
        "-sSf",
        "--cacert",
        str(site.ca.file),
        "-H",
        f"Authorization: Bearer {site.token()}",
    ]
    run(*base, "-T", str(local), f"{site.url}/{name}/a/b")
    back = tmp_path / "back"
    run(*base, "-o", str(back), f"{site.url}/{name}/a/b")
    assert back.read_bytes() == DATA
    assert run(*base, "-r", "4-8", f"{site.url}/{name}/a/b") == "quick"
    run(*base, "-X", "DELETE", f"{site.url}/{name}")
    assert not (site.root / name).exists()


# --- davix


def test_davix_tester_passes_its_whole_suite(relay: TokenRelay, site: StorageSite, tmp_path: Path) -> None:
    proxy = tmp_path / "proxy.pem"
    host = site.ca.host("davix")
    proxy.write_bytes(host.certificate.read_bytes() + host.key.read_bytes())
    name = f"davix-tests-{uuid.uuid4().hex[:8]}"  # it deletes nothing without this in the path
    argv = (tool("davix-tester"), "--auth", "proxy", "--cert", str(proxy), "--uri", f"{relay.url}/{name}")
    output = run(*argv, "--command", "fulltest", deadline_s=120)
    assert output.count("[OK]") >= 108
    assert "[FAIL]" not in output


def test_davix_tools_upload_list_and_read(
    site: StorageSite, environment: dict[str, str], local: Path, tmp_path: Path
) -> None:
    url, name = site.url, fresh(site)
    token = ["-H", f"Authorization: Bearer {environment['BEARER_TOKEN']}"]
    trust = ["--capath", environment["X509_CERT_DIR"]]
    run(tool("davix-mkdir"), *trust, *token, f"{url}/{name}")
    run("davix-put", *trust, *token, str(local), f"{url}/{name}/file")
    assert "file" in run("davix-ls", *trust, *token, f"{url}/{name}")
    run("davix-get", *trust, *token, f"{url}/{name}/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == DATA
    run("davix-rm", *trust, *token, f"{url}/{name}/file")
    assert not (site.root / name / "file").exists()


# --- gfal2


def davs(url: str) -> str:
    return url.replace("https://", "davs://")


def test_gfal_walks_its_whole_vocabulary(
    site: StorageSite, environment: dict[str, str], local: Path, tmp_path: Path
) -> None:
    here = f"{davs(site.url)}/{fresh(site)}"
    run(tool("gfal-mkdir"), "-p", f"{here}/d", env=environment)
    run("gfal-copy", "-K", "ADLER32", f"file://{local}", f"{here}/d/f", env=environment)
    assert "f" in run("gfal-ls", "-l", f"{here}/d", env=environment)
    adler = run("gfal-sum", f"{here}/d/f", "ADLER32", env=environment).split()[1]
    assert adler == run("gfal-sum", f"file://{local}", "ADLER32", env=environment).split()[1]
    assert len(run("gfal-sum", f"{here}/d/f", "MD5", env=environment).split()[1]) == 32
    run("gfal-rename", f"{here}/d/f", f"{here}/d/g", env=environment)
    assert str(len(DATA)) in run("gfal-stat", f"{here}/d/g", env=environment)
    run("gfal-copy", f"{here}/d/g", f"file://{tmp_path}/back", env=environment)
    assert (tmp_path / "back").read_bytes() == DATA
    run("gfal-rm", "-r", here, env=environment)


@pytest.mark.parametrize("mode", ["pull", "push", "streamed"])
def test_gfal_copies_between_two_endpoints(
    site: StorageSite, other: StorageSite, environment: dict[str, str], mode: str
) -> None:
    name = fresh(site)
    site.put_file(f"{name}/source", DATA)
    source, target = f"{davs(site.url)}/{name}/source", f"{davs(other.url)}/{name}/deep/er/copy"
    run(tool("gfal-copy"), "-p", "-K", "ADLER32", "--copy-mode", mode, source, target, env=environment)
    assert (other.root / name / "deep/er/copy").read_bytes() == DATA
    run("gfal-copy", "-f", "-K", "ADLER32", "--copy-mode", mode, source, target, env=environment)


# --- rclone


def test_rclone_copies_checks_moves_and_purges(site: StorageSite, tmp_path: Path) -> None:
    files = {"one": b"1" * 1000, "sub/two": b"2" * 300000, "sub/deep/drei und vier.txt": DATA, "empty": b""}
    for name, data in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(data)
    remote = f":webdav,url='{site.url}/{fresh(site)}',vendor=other,bearer_token='{site.token()}':"
    base = (tool("rclone"), "--config", "/dev/null", "--ca-cert", str(site.ca.file))
    run(*base, "copy", str(tmp_path / "tree"), remote)
    run(*base, "check", str(tmp_path / "tree"), remote)
    run(*base, "check", "--download", str(tmp_path / "tree"), remote)
    run(*base, "moveto", f"{remote}one", f"{remote}sub/uno")
    listed = run(*base, "lsf", "-R", remote).split("\n")
    assert {"sub/uno", "sub/two", "sub/deep/drei und vier.txt", "empty"} <= set(listed)
    run(*base, "purge", remote)


# --- webdavclient3


def test_webdavclient3(site: StorageSite, local: Path, tmp_path: Path) -> None:
    webdav = pytest.importorskip("webdav3.client")
    name = f"cms/{fresh(site)}"
    client = webdav.Client({"webdav_hostname": site.base, "webdav_token": site.token()})
    client.verify = str(site.ca.file)
    client.mkdir(name)
    client.upload_sync(remote_path=f"{name}/ü file", local_path=str(local))
    assert client.check(f"{name}/ü file")
    assert client.list(name) == ["ü file"]
    assert int(client.info(f"{name}/ü file")["size"]) == len(DATA)
    client.copy(f"{name}/ü file", f"{name}/second")
    client.move(f"{name}/second", f"{name}/third")
    client.download_sync(f"{name}/third", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == DATA
    client.clean(name)
    assert not client.check(name)


# --- litmus and cadaver


def suites(output: str) -> dict[str, tuple[int, int]]:
    """Passed and run, by litmus suite."""
    found = re.findall(r"summary for `(\w+)': of (\d+) tests run: (\d+) passed", output)
    return {name: (int(passed), int(ran)) for name, ran, passed in found}


def test_litmus_passes_in_full(site: StorageSite, relay: TokenRelay, tmp_path: Path) -> None:
    """On the export that makes no parents, as RFC 4918 wants."""
    done = subprocess.run(
        [tool("litmus"), "-k", f"{relay.base}/strict/"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert suites(done.stdout) == {
        "basic": (16, 16),
        "copymove": (13, 13),
        "props": (30, 30),
        "locks": (41, 41),
        "http": (4, 4),
    }, done.stdout


def test_litmus_differs_only_where_rucio_needs_it(relay: TokenRelay, tmp_path: Path) -> None:
    """With parents made on the way, exactly the tests that forbid this fail."""
    done = subprocess.run(
        [tool("litmus"), "-k", f"{relay.url}/"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    failed = set(re.findall(r"\d+\. (\w+)\.* FAIL", done.stdout))
    assert failed == {"put_no_parent", "mkcol_no_parent", "copy_nodestcoll"}, done.stdout


def test_cadaver(relay: TokenRelay, site: StorageSite, local: Path, tmp_path: Path) -> None:
    name = fresh(site)
    script = (
        f"mkcol {name}\ncd {name}\nput {local} one\nlock one\nput {local} one\nunlock one\n"
        f"copy one two\nmove two three\npropset one colour blue\npropget one colour\n"
        f"get three {tmp_path}/back\nls\ndelete one\nquit\n"
    )
    done = subprocess.run(
        [tool("cadaver"), f"{relay.url}/"],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )
    assert "failed" not in done.stdout, done.stdout
    assert (tmp_path / "back").read_bytes() == DATA
    assert sorted(p.name for p in (site.root / name).iterdir()) == ["three"]


# --- Rucio


def test_rucio_webdav_protocol(site: StorageSite, local: Path, tmp_path: Path) -> None:
    """The class uploads and downloads go through, strict about every status."""
    pytest.importorskip("rucio.rse.protocols.webdav")
    name = fresh(site)
    site.put_file(f"{name}/.keep")
    config = tmp_path / "rucio.cfg"
    config.write_text("[common]\n[client]\n")
    script = Path(__file__).with_name("rucio_client.py")
    where = (str(site.port), f"/cms/{name}/", str(local), str(tmp_path / "back"))
    env = {**os.environ, "RUCIO_CONFIG": str(config), "BEARER_TOKEN": site.token()}
    run(sys.executable, str(script), *where, env=env)
    assert (tmp_path / "back").read_bytes() == DATA
