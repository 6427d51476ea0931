"""The published suite against the local driver, as an account of its own when root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from services.jobs.batch.conformance import Conformance, Subject
from services.jobs.batch.local.driver import DRIVER
from services.jobs.batch.local.verbs import SLOTS
from tests.real.batch.subjects import me, subject
from tests.support import local_accounts


@pytest.fixture(scope="module", name="subject")
def driver_subject() -> Iterator[Subject]:
    account = me()
    if os.getuid() == 0:
        local_accounts.ensure()
        account = local_accounts.CMSPRD.name
    known: dict[str, Any] = {
        "fillers": SLOTS,
        "impossible": {"nodes": 2},
        "shortest_walltime_s": 1,
        "patience_s": 30.0,
    }
    with subject(DRIVER, account, {}, **known) as local:
        yield local


class TestLocal(Conformance):
    pass
