from __future__ import annotations

from tests.real.jobs.fixtures import *  # noqa: F403
