"""Storage Resource Reporting: the WLCG SRR document. Pure.

Source: WLCG SRR schema; required are implementation, implementationversion, storageendpoints, storageshares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edged.accounts.api import Space
from edged.config.storage import Export


def document(
    *,
    site: str,
    version: str,
    url: str,
    exports: Sequence[Export],
    spaces: Mapping[str, tuple[float, Space]],
    now: float,
) -> dict[str, Any]:
    """``spaces`` by export label: when it was measured (Unix seconds), and what. Sizes in bytes."""
    names = [export.label for export in exports]
    endpoint = {
        "name": "webdav",
        "endpointurl": url,
        "interfacetype": "webdav",
        "qualitylevel": "production",
        "assignedshares": names,
    }
    return {
        "storageservice": {
            "name": site,
            "implementation": "edged",
            "implementationversion": version,
            "latestupdate": int(now),
            "qualitylevel": "production",
            "capabilities": ["data.management.transfer", "data.management.storage", "data.access.flatfiles"],
            "storageendpoints": [endpoint],
            "storageshares": [_share(export, spaces.get(export.label), now) for export in exports],
        }
    }


def _share(export: Export, measured: tuple[float, Space] | None, now: float) -> dict[str, Any]:
    moment, space = measured if measured is not None else (now, None)
    share: dict[str, Any] = {
        "name": export.label,
        "timestamp": int(moment),
        "totalsize": space.total if space is not None else (export.size or 0),
        "usedsize": space.used if space is not None else 0,
        "vos": [export.vo],
        "path": [export.prefix],
        "assignedendpoints": ["webdav"],
        "servingstate": "open" if space is not None else "closed",
    }
    if space is not None:
        share["numberoffiles"] = space.files_used
    return share
