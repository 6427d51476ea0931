"""[cache]."""

from __future__ import annotations

from edged.config.site import Front


class Cache(Front):
    """See services/cache/README.md."""
