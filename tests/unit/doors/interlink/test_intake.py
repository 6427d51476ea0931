"""Pods that cannot be taken leave nothing behind, and harm nobody but themselves."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from edged.config.doors import InterLink
from edged.errors import EdgeError
from edged.identity.client import Verdicts
from edged.lifecycle import Background
from services.jobs.doors.interlink.index import Index
from services.jobs.doors.interlink.intake import Intake
from services.jobs.doors.interlink.pods import Create
from services.jobs.engine import Engine
from tests.support.engine import ALICE, Subject

RUNTIME = {"kind": "none", "images": ["localhost/"]}


def _body(**spec: Any) -> Create:
    metadata = {"name": "p", "namespace": "default", "uid": str(uuid.uuid4())}
    return msgspec.convert({"pod": {"metadata": metadata, "spec": spec}}, Create)


def _intake(engine: Engine, identity: object, **settings: Any) -> Intake:
    config = InterLink.model_validate({"listen": ["127.0.0.1:1"], "runtime": RUNTIME, **settings})
    return Intake(config, engine, cast(Verdicts, identity), Index(engine.registry))


async def test_refused_pods_are_forgotten(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    async with subject.running() as engine, Background() as tasks:
        intake = _intake(engine, subject.identity)
        for _ in range(20):
            with pytest.raises(EdgeError):
                await intake.take(ALICE, _body(containers=[]), tasks)
        assert not intake._taking
        assert not intake._waiting


async def test_a_fault_of_ours_with_one_pod_ends_that_request_only(tmp_path: Path) -> None:
    """Identity answers with what nobody expected."""

    class Broken:
        async def asserted(self, *_: object) -> object:
            raise RuntimeError("not expected")

    subject = Subject(tmp_path)
    async with subject.running() as engine, Background() as tasks:
        intake = _intake(engine, Broken(), rule=[{"account": "other"}])
        container = {"name": "main", "image": "localhost/x", "command": ["true"]}
        with pytest.raises(RuntimeError):
            await intake.take(ALICE, _body(containers=[container]), tasks)
        await asyncio.sleep(0)
        await subject.accept()
