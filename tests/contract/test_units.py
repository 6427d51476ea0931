"""The units agree with the code they run, with each other and with what a sandbox must not let through."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from edged import config as configuration
from edged.accounts.settings import SERVICES
from edged.errors import ConfigError
from edged.units import install, site

UNITS = Path(__file__).parents[2] / "systemd"
FILES = sorted(UNITS.glob("edged*.service"))
LONG_RUNNING = [file for file in FILES if "Type=oneshot" not in file.read_text()]
SOCKETS = sorted(UNITS.glob("edged*.socket"))
SECURITY = {"edged-accountd.service": 3.0, "edged-xrootd@.service": 3.0, "edged-cmsd@.service": 3.0}
# names under which the code looks for what it inherits (edged.services.Context.inherited)
INHERITED = {
    *("identity", "identity-feed", "issuers", "identity-api", "jobs", "storage", "cache", "egress"),
    *("portal", "accountd", "netd", "observe", "egress-relay-%i", "egress-api"),
    *("interlink", "interlink-plugin"),
}


def settings(file: Path) -> dict[str, list[str]]:
    """Setting → its values, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in file.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[key].append(value)
    return found


def test_every_service_has_a_unit_and_every_unit_a_service() -> None:
    services = {point.name for point in entry_points(group="edged.services")}
    run = {
        found[1]
        for file in FILES
        if (found := re.search(r"bin/edged run (\S+)", file.read_text())) is not None
    }
    assert services - run == set()
    assert run - services <= {"portal"}  # its unit may be there before it is


@pytest.mark.parametrize("file", LONG_RUNNING, ids=lambda file: file.name)
def test_what_every_unit_owes(file: Path) -> None:
    found = settings(file)
    assert found["StartLimitIntervalSec"] == ["0"], "the default limit closes the socket after five restarts"
    assert found["Restart"] == ["always"]
    assert found["PartOf"][0] == "edged.target"
    for limit in ("MemoryMax", "TasksMax", "LimitNOFILE", "TimeoutStopSec"):
        assert found[limit], limit
    for closed in ("NoNewPrivileges", "PrivateDevices", "ProtectKernelTunables", "MemoryDenyWriteExecute"):
        assert found[closed] == ["yes"], closed
    assert found["ProtectSystem"] == ["strict"]
    assert found["Type"] == ["notify"]
    if "bin/edged xrootd" not in found["ExecStart"][0]:
        assert found["WatchdogSec"]


def test_each_service_is_a_user_of_its_own() -> None:
    made = set(re.findall(r"^u (\S+)", (UNITS / "sysusers.d/edged.conf").read_text(), re.M))
    users: dict[str, list[str]] = defaultdict(list)
    for file in LONG_RUNNING:
        users[settings(file)["User"][0]].append(file.name)
    assert set(users) - {"root"} <= made
    shared = {user: files for user, files in users.items() if len(files) > 1}
    assert set(shared) == {"root", "edged-storage"}
    assert shared["root"] == ["edged-accountd.service", "edged-cmsd@.service", "edged-xrootd@.service"]
    assert {f"edged-{service}" for service in SERVICES} <= made, "accountd judges by these names"


def test_fronts_hold_no_capability() -> None:
    for file in LONG_RUNNING:
        if settings(file)["User"] != ["root"] and "netd" not in file.name:
            assert settings(file)["CapabilityBoundingSet"] == [""], file.name
            assert "AmbientCapabilities" not in settings(file)


@pytest.mark.parametrize("file", SOCKETS, ids=lambda file: file.name)
def test_sockets_are_named_as_the_code_asks(file: Path) -> None:
    found = settings(file)
    assert found["FileDescriptorName"][0] in INHERITED
    assert found["TriggerLimitIntervalSec"] == ["0"]
    assert found["PartOf"] == ["edged.target"], "stopped services are revived by sockets that stay"


def test_services_start_after_their_sockets() -> None:
    for file in LONG_RUNNING:
        found = settings(file)
        for socket in found.get("Requires", [""])[0].split():
            assert socket in " ".join(found["After"]), f"{file.name}: {socket}"


@pytest.mark.parametrize("file", LONG_RUNNING, ids=lambda file: file.name)
def test_the_security_score(file: Path, tmp_path: Path) -> None:
    """What systemd itself thinks of the sandbox; needs its tool, not a running systemd."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed: scores unproven here")
    target = tmp_path / file.name.replace("@.", "@x.")
    shutil.copy(file, target)
    done = subprocess.run(
        [tool, "security", "--no-pager", "--offline=true", str(target)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert score is not None, done.stderr
    assert float(score[1]) <= SECURITY.get(file.name, 1.5), done.stdout


# --- the site's part

SITE = """
[site]
name = "TEST"
[tls]
certificate = "/etc/tls/cert.pem"
key = "/etc/tls/key.pem"
[[issuer]]
url = "https://issuer.example.org/"
audience = ["https://edge.example.org"]
vo = "cms"
claims_from = "introspection"
introspection_client = "edged"
introspection_secret_file = "/etc/edged/secrets/introspection"
[[mapping]]
issuer = "https://issuer.example.org/"
account = "cmsprd"
[identity]
listen = ["0.0.0.0:8443", "[::]:8443"]
[[identity.assertions]]
service = "jobs"
accounts = ["cmsprd"]
[jobs]
listen = ["0.0.0.0:8444"]
batch = "slurm"
sessions = "/gpfs/edged"
[jobs.interlink]
listen = ["0.0.0.0:8446"]
runtime = {images = ["docker.io/library/"]}
[jobs.interlink.plugin]
listen = ["/run/interlink/edged.sock"]
account = "cmsprd"
users = ["interlink"]
[storage]
listen = ["0.0.0.0:8445"]
[[storage.export]]
prefix = "/cms"
root = "/gpfs/cms"
vo = "cms"
[cache]
listen = ["10.0.0.1:3128"]
store = "/scratch/cache"
[egress]
listen = ["10.0.0.1:3129"]
api = {listen = ["10.0.0.1:3130"]}
[[egress.relay]]
name = "collector"
listen = ["10.0.0.1:9618"]
to = ["collector.example.org:9618"]
[egress.nat]
inside = ["eth1"]
"""


@pytest.fixture
def config(tmp_path: Path) -> configuration.Config:
    file = tmp_path / "edged.toml"
    file.write_text(SITE)
    return configuration.load(file)


def test_addresses_come_from_the_configuration(config: configuration.Config) -> None:
    found = site.drop_ins(config)
    listening = "[Socket]\nListenStream=0.0.0.0:8443\nListenStream=[::]:8443\n"
    assert found["edged-identity-api.socket.d/50-site.conf"] == listening
    assert "10.0.0.1:9618" in found["edged-egress-relay@collector.socket.d/50-site.conf"]
    assert "127.0.0.1:9467" in found["edged-observe@jobs.socket.d/50-site.conf"]
    assert "0.0.0.0:8446" in found["edged-interlink.socket.d/50-site.conf"]
    assert "/run/interlink/edged.sock" in found["edged-interlink-plugin.socket.d/50-site.conf"]
    assert "10.0.0.1:3130" in found["edged-egress-api.socket.d/50-site.conf"]


def test_every_listener_of_the_configuration_has_a_socket_unit(config: configuration.Config) -> None:
    """Whatever is called `listen` in the tree, at any depth; the health listeners have units of another name."""
    written = "".join(text for name, text in site.drop_ins(config).items() if ".socket" in name)
    for key, addresses in _listen(config.model_dump(exclude={"observe"})):
        assert not addresses or all(f"ListenStream={one}\n" in written for one in addresses), key


def _listen(tree: object, key: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == "listen":
                yield key, value
            yield from _listen(value, f"{key}.{name}")
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from _listen(value, f"{key}[{number}]")


def test_secrets_and_paths_come_from_the_configuration(config: configuration.Config) -> None:
    found = site.drop_ins(config)
    secret = "LoadCredential=introspection:/etc/edged/secrets/introspection"
    assert secret in found["edged-issuers.service.d/50-site.conf"]
    tls = "LoadCredential=\nLoadCredential=tls.crt:/etc/tls/cert.pem\nLoadCredential=tls.key:/etc/tls/key.pem"
    assert tls in found["edged-jobs.service.d/50-site.conf"]
    assert "ReadWritePaths=-/scratch/cache" in found["edged-cache.service.d/50-site.conf"]
    accountd = found["edged-accountd.service.d/50-site.conf"].splitlines()
    assert accountd == ["[Service]", "ReadWritePaths=-/gpfs/cms", "ReadWritePaths=-/gpfs/edged"]
    assert tls in found["edged-egress.service.d/50-site.conf"], "its API speaks TLS, the gate itself does not"
    assert "edged-egress" in found["edged-renewed.service.d/50-site.conf"]


def test_only_what_is_configured_runs(config: configuration.Config) -> None:
    wanted = site.wanted(config)
    assert {"edged-netd.service", "edged-forwarding.service", "edged-jobs.socket"} <= set(wanted)
    less = configuration.parse({"site": {"name": "T"}, "cache": {"listen": ["10.0.0.1:3128"]}})
    services = {unit for unit in site.wanted(less) if unit.endswith(".service")}
    assert services == {"edged-identity.service", "edged-issuers.service", "edged-cache.service"}


def test_every_wanted_unit_is_shipped(config: configuration.Config) -> None:
    shipped = {path.name for path in install.files(config)}
    for unit in site.wanted(config):
        assert re.sub(r"@[^.]*", "@", unit) in shipped, unit


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"jobs": {"listen": ["0.0.0.0:0"]}}, "jobs.listen: 0.0.0.0:0"),
        ({"jobs": {}}, "jobs.listen: missing"),
        ({"runtime": {"state": "/data/edged"}}, "runtime.state"),
        ({"accounts": {"mode": "self"}}, "accounts.mode"),
    ],
)
def test_what_units_cannot_serve_is_refused(changes: dict[str, object], says: str) -> None:
    config = configuration.parse({"site": {"name": "T"}, **changes})
    with pytest.raises(ConfigError) as refused:
        site.drop_ins(config)
    assert any(problem.startswith(says) for problem in refused.value.problems)


def test_written_once_then_nothing_changes_and_all_can_go(
    config: configuration.Config, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "etc/systemd/system").mkdir(parents=True)
    own = root / "etc/systemd/system/edged-own.service"
    own.write_text("[Unit]\n")
    install.apply(install.changes(install.files(config), root))
    assert install.changes(install.files(config), root) == []
    assert install.running_now(root) == site.wanted(config)
    assert "edged" in (root / "etc/sysusers.d/edged.conf").read_text()
    install.apply(install.changes({}, root))
    assert [path for path in root.rglob("*") if path.is_file()] == [own], "the site's own unit is not ours"


def test_only_a_moved_listener_needs_a_closed_socket(config: configuration.Config, tmp_path: Path) -> None:
    root = tmp_path / "root"
    install.apply(install.changes(install.files(config), root))
    jobs = config.jobs
    assert jobs is not None
    cases = {("0.0.0.0:8444",): 0, ("0.0.0.0:9444",): 1}
    for listen, moved in cases.items():
        changed = config.model_copy(
            update={"jobs": jobs.model_copy(update={"listen": listen, "poll_s": 9.0})}
        )
        assert len(install.moved(install.changes(install.files(changed), root))) == moved


def test_which_units_have_other_settings(config: configuration.Config, tmp_path: Path) -> None:
    """By their own drop-in or by their template; a comment is no setting, and what is new runs nothing old."""
    root = tmp_path / "root"
    install.apply(install.changes(install.files(config), root))
    units = ["edged-xrootd@a.service", "edged-xrootd@b.service", "edged-cmsd@a.service", "edged-jobs.service"]
    system = root / "etc/systemd/system"

    def altered(**texts: str) -> list[str]:
        wanted = {
            **install.files(config),
            **{Path("etc/systemd/system") / path: text for path, text in texts.items()},
        }
        return install.altered(install.changes(wanted, root), units)

    own = f"edged-xrootd@b.service.d/{site.DROP_IN}"
    template = "edged-xrootd@.service"
    assert altered() == []
    assert altered(**{own: "[Service]\nMemoryMax=1G\n"}) == [], "new"
    (system / own).parent.mkdir(exist_ok=True)
    (system / own).write_text(f"{install.MARK}[Service]\nMemoryMax=2G\n")
    assert altered(**{own: "[Service]\nMemoryMax=1G\n"}) == ["edged-xrootd@b.service"]
    assert altered(**{own: "# a word\n[Service]\nMemoryMax=2G\n"}) == []
    now = (system / template).read_text()
    assert altered(**{own: "[Service]\nMemoryMax=2G\n", template: now + "Nice=1\n"}) == units[:2]
