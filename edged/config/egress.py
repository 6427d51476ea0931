"""[egress]."""

from __future__ import annotations

from edged.config.site import Front


class Egress(Front):
    """See services/egress/README.md."""
