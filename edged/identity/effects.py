"""What a ban does besides refusing: services say whom else it touches (entry point group ``edged.ban_effects``)."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from edged.identity.grants import Ban

if TYPE_CHECKING:
    from edged.config import Config


def of_ban(config: Config, ban: Ban) -> list[str]:
    """Lines for the admin, asked before the ban is made: ``effects(config, ban) -> list[str]`` of each service."""
    points = sorted(entry_points(group="edged.ban_effects"))
    return [line for point in points for line in point.load()(config, ban)]
