from __future__ import annotations

from tests.support.slurm_fixture import *  # noqa: F403
