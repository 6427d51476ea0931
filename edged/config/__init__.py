"""The configuration: one frozen tree, read once, passed down.

``load()`` reads a TOML file plus ``conf.d/*.toml`` beside it and raises ConfigError with *every*
problem, each with its dotted path. ``warnings()`` tells what is legal but unwise.
"""

from __future__ import annotations

from edged.config.load import DEFAULT_FILE, Config, load, parse, warnings

__all__ = ["DEFAULT_FILE", "Config", "load", "parse", "warnings"]
