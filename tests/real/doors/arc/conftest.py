from __future__ import annotations

from tests.real.doors.arc.fixtures import *  # noqa: F403
