"""The way out: the policy of [egress], names and addresses, for all who reach out on behalf of nodes."""

from __future__ import annotations

from edged.egress.environment import job_environment

__all__ = ["job_environment"]
