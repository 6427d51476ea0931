"""``edged demo``: the whole suite on embedded defaults, shown by real requests, leaving nothing behind."""

from edged.demo.walk import run

__all__ = ["run"]
