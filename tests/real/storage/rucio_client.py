"""Runs Rucio's webdav class through an upload's life: PORT PREFIX LOCAL BACK. Fails by exception."""

from __future__ import annotations

import os
import sys

from rucio.common import exception  # type: ignore[import-untyped]
from rucio.rse.protocols import webdav  # type: ignore[import-untyped]


def main(port: str, prefix: str, local: str, back: str) -> None:
    attributes = {
        "scheme": "https",
        "hostname": "localhost",
        "port": int(port),
        "prefix": prefix,
        "extended_attributes": None,
        "determinism_type": "default",
        "auth_token": os.environ["BEARER_TOKEN"],
    }
    settings = {"sign_url": None, "rse": "TEST", "deterministic": True, "lfn2pfn_algorithm": "hash"}
    protocol = webdav.Default(attributes, settings)
    protocol.connect({})
    pfn = protocol.path2pfn("scope/ab/cd/name")
    assert not protocol.exists(pfn)
    protocol.put(local, f"{pfn}.rucio.upload")
    protocol.rename(f"{pfn}.rucio.upload", pfn)
    assert protocol.exists(pfn)
    found = protocol.stat(pfn)
    assert int(found["filesize"]) == os.stat(local).st_size, found
    protocol.get(pfn, back)
    total, free = protocol.get_space_usage()
    assert int(total) > 0
    assert int(free) > 0
    protocol.mkdir("scope/ab/cd/")
    listed = protocol.ls(protocol.path2pfn("scope/ab/cd/"))
    assert any(entry.rstrip("/").endswith("/name") for entry in listed), listed
    protocol.delete(pfn)
    try:
        protocol.delete(pfn)
    except exception.SourceNotFound:
        protocol.close()
        return
    raise AssertionError("a deleted file was deleted again")


main(*sys.argv[1:])
