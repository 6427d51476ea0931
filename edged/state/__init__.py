"""The state store: one database per service, written in groups, migrated as an explicit step."""

from edged.state.store import Store

__all__ = ["Store"]
