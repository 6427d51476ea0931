"""[portal]."""

from __future__ import annotations

from edged.config.site import Front


class Portal(Front):
    """See services/portal/README.md."""
