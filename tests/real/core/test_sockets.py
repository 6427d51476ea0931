"""The configuration's own list of sockets, against what a running edge has made; in the longest directory it allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged import config as configuration
from edged.config.sockets import PATH_BYTES, sockets
from tests.support.local_accounts import CMSPRD, ensure
from tests.support.site import Site


@pytest.mark.root
async def test_every_socket_is_listed_and_the_longest_one_fits(tmp_path: Path) -> None:
    ensure((CMSPRD,))
    tmp_path.chmod(0o755)
    room = PATH_BYTES - len("/workers/storage-1.sock")
    root = tmp_path / ("x" * (room - len(f"{tmp_path}//run")))
    root.mkdir()
    (root / "data").mkdir()
    two = {"listen": ["127.0.0.1:0"], "workers": 2}
    site = Site(
        root,
        accounts={"mode": "accountd"},
        storage={**two, "export": [{"prefix": "/cms", "root": str(root / "data"), "vo": "cms"}]},
        cache={**two, "store": str(root / "state/cache"), "disk": "50M", "disk_free": "1M"},
    )
    site.sections["mapping"] = [{"issuer": site.issuer.url, "groups": ["/cms"], "account": CMSPRD.name}]
    async with site.running():
        made = {path for path in (root / "run").rglob("*") if path.is_socket()}
        listed = {directory / name for _, directory, name in sockets(configuration.load(site.file))}
    last = {path for path in made if path.name in ("storage-1.sock", "1.sock")}  # of each service's workers
    assert last < listed <= made and len(last) == 2
    assert {path.parent / path.name.replace("0.sock", "1.sock") for path in made} <= listed
    assert max(len(str(path)) for path in made) == PATH_BYTES
