"""A worker is its account and nothing else, told by the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edged.accounts.api import Place
from edged.accounts.privileges import EXIT_UNPROVEN
from tests.real.accounts.conftest import FIRST, Site
from tests.support.accounts import is_root, processes

pytestmark = pytest.mark.skipif(not is_root(), reason="needs root: becomes other accounts")


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


async def test_what_the_kernel_says_of_a_worker(site: Site, account: str) -> None:
    async with site().running() as stack:
        assert stack.accountd is not None
        await stack.client.files.stat(stack.access(account), Place("cms", ""))
        running = processes(stack.accountd)
        facts = status(running[f"f-worker:{account}"[:15]])
        assert facts["Uid"].split() == [str(FIRST.uid)] * 4
        assert facts["Gid"].split() == [str(FIRST.uid)] * 4
        assert facts["Groups"].split() == [str(FIRST.uid)]
        for held in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(facts[held], 16) == 0, held
        assert facts["NoNewPrivs"] == "1"
        pid = running[f"f-worker:{account}"[:15]]
        assert Path(f"/proc/{pid}/status").stat().st_uid == 0  # not dumpable: not the account's to look into
        targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [target for target in targets if target.endswith(".lock") or "memfd" in target]


def become_then(code: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import os\nfrom edged.accounts.privileges import Account, become, prove\n"
        "account = Account('edgedt1', 21001, 21001, (21001,), '/')\n"
        "def switch(groups, saved):\n"
        "    os.setgroups(groups)\n"
        "    os.setresgid(21001, 21001, 21001)\n"
        "    os.setresuid(21001, 21001, saved)\n" + code
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )


def test_there_is_no_way_back() -> None:
    done = become_then(
        "become(account)\n"
        "for call in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]),\n"
        "             lambda: os.seteuid(0), lambda: os.chroot('/'), lambda: os.setuid(21002)):\n"
        "    try:\n        call()\n    except PermissionError:\n        print('no')\n"
    )
    assert done.stdout.split() == ["no"] * 6


@pytest.mark.parametrize(
    "code",
    [
        "prove(account)",  # still root
        "switch([0], 21001); prove(account)",  # a group too many
        "switch([21001], 0); prove(account)",  # root is still the saved uid
        "switch([21001], 21001); prove(account)",  # capabilities in the bounding set
        "become(Account('root', 0, 0, (0,), '/'))",
        "become(Account('x', 21001, 21001, (21001, 0), '/'))",
    ],
)
def test_what_is_not_proven_ends_the_process(code: str) -> None:
    assert become_then(code + "\nprint('alive')").returncode == EXIT_UNPROVEN


RUN = """
import asyncio, os, sys
from pathlib import Path
from edged import config
from edged.accounts.api import Place
from edged.accounts.start import start_privileged
from tests.support.accounts import AccountStack

loaded = config.load(Path(sys.argv[1]))
stack = AccountStack(loaded)
stack.publish_key()
started = start_privileged(loaded, Path(sys.argv[1]))
print("user", os.getresuid(), open("/proc/self/status").read().split("CapBnd:")[1].split()[0])
try:
    os.setuid(0)
except PermissionError:
    print("never root again")

async def use():
    from edged.identity import feed
    async with stack.feed.running(loaded.runtime.run / feed.SOCKET):
        async with asyncio.TaskGroup() as tasks, stack.client.running(tasks):
            entry = await stack.client.files.stat(stack.access("edgedt2"), Place("cms", ""))
            print("worker answered", entry.kind.value)

asyncio.run(use())
started.stop()
print("stopped")
"""


def test_edged_run_gives_up_root_and_still_reaches_accounts(tmp_path: Path, account: str) -> None:
    """What `edged run` does as root: accountd keeps the privilege, the front becomes ``runtime.user``."""
    (tmp_path / "export").mkdir()
    config = tmp_path / "edged.toml"
    config.write_text(
        f'[site]\nname = "T"\n[runtime]\nstate = "{tmp_path}/state"\n'
        f'run = "{tmp_path}/run"\nuser = "{account}"\n'
        '[[issuer]]\nurl = "https://issuer.test/"\naudience = ["x"]\nvo = "cms"\n'
        '[[mapping]]\nissuer = "https://issuer.test/"\naccount = "edgedt2"\n'
        f'[[storage.export]]\nprefix = "/cms"\nroot = "{tmp_path}/export"\nvo = "cms"\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(config)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == [
        f"user ({FIRST.uid}, {FIRST.uid}, {FIRST.uid}) 0000000000000000",
        "never root again",
        "worker answered directory",
        "stopped",
    ], done.stderr
