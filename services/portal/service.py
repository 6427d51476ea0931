"""Wiring of the portal."""

from __future__ import annotations

from edged.config import Config
from edged.lifecycle import Service
from edged.services import Context


def build(config: Config, context: Context) -> list[Service]:
    """Nothing yet."""
    return []
