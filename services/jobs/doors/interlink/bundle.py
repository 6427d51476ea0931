"""``pod.pyz``: what runs a pod on the node, its plan and its files, in one archive of mode 0600. Pure.

One file is one upload; it appears whole or not at all, and is gone when the pod has ended. Python runs
such an archive by itself (PEP 441).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from importlib.resources import files

import msgspec

from services.jobs.doors.interlink.plan import Plan

NAME = "pod/pod.pyz"
MODE = 0o600
_START = "import sys\nfrom node.main import main\nsys.exit(main(sys.argv[0]))\n"
_encode = msgspec.json.Encoder().encode


def _program() -> Mapping[str, bytes]:
    """The node's part, as it is installed here."""
    source = files("services.jobs.doors.interlink") / "node"
    return {f"node/{file.name}": file.read_bytes() for file in source.iterdir() if file.name.endswith(".py")}


# read with the imports: once root is given up, the installation may be out of reach
_PROGRAM = _program()


def bundle(plan: Plan, contents: Mapping[str, bytes]) -> bytes:
    """The archive. ``contents``: the entries that the plan's volumes name."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("__main__.py", _START)
        for name, content in _PROGRAM.items():
            archive.writestr(name, content)
        archive.writestr("plan.json", _encode(plan))
        for name, content in contents.items():
            archive.writestr(name, content)
    return target.getvalue()
