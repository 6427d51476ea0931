"""The cache's part of `edged demo` shows what it says."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path
from types import SimpleNamespace

from edged.config import parse
from edged.demo.context import Demo
from edged.services import Context
from services.cache import demo
from services.cache.service import CacheService, build


async def walk(tmp_path: Path) -> list[str]:
    scene = SimpleNamespace(scratch=tmp_path)
    runtime = {"run": str(tmp_path / "run"), "state": str(tmp_path)}
    tree = tomllib.loads(demo.settings(scene))  # type: ignore[arg-type]
    config = parse({"site": {"name": "DEMO"}, "runtime": runtime, **tree})
    (service,) = build(config, Context())
    assert isinstance(service, CacheService)
    written: list[str] = []
    async with asyncio.TaskGroup() as tasks, service.running(tasks):
        listening = {"cache": service.addresses}
        await demo.steps(Demo(tmp_path, config, listening, tmp_path, lambda: "", written.append))
    return written


async def test_the_steps_of_the_demo(tmp_path: Path) -> None:
    written = await walk(tmp_path)
    assert len([line for line in written if " ms " in line]) == 4
    assert "refused with 502" in written[-1]
