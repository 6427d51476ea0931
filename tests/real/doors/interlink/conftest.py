from __future__ import annotations

from tests.real.doors.interlink.fixtures import *  # noqa: F403
