"""Reading the running table back: what an earlier netd left, or what somebody changed since. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from services.egress.netd.table import Chain, SetOf, Table

Object = Mapping[str, Any]


class _Unknown(SetOf):
    """A set of which only the digest of its declaration is known."""

    __slots__ = ()

    @property
    def mark(self) -> str:
        return self.spec


def table_of(listing: Iterable[Object]) -> Table | None:
    """The table as ``nft -j list table inet edged`` shows it; None when there is none."""
    objects = list(listing)
    if not any("table" in item for item in objects):
        return None
    rules: dict[str, list[str]] = {}
    for item in objects:
        if "rule" in item:
            rule = item["rule"]
            rules.setdefault(rule["chain"], []).append(rule.get("comment", "not ours"))
    return Table(
        sets={item["set"]["name"]: _set(item["set"]) for item in objects if "set" in item},
        counters=frozenset(item["counter"]["name"] for item in objects if "counter" in item),
        chains={
            item["chain"]["name"]: Chain(marks=tuple(rules.get(item["chain"]["name"], ())))
            for item in objects
            if "chain" in item
        },
    )


def _set(shown: Object) -> SetOf:
    """Elements matter only for the sets we declare in full, which are plain intervals."""
    plain = "timeout" not in shown.get("flags", ()) and "dynamic" not in shown.get("flags", ())
    elements = frozenset(_element(item) for item in shown.get("elem", ())) if plain else None
    return _Unknown(shown.get("comment", "not ours"), elements)


def _element(item: Any) -> str:
    if isinstance(item, str):
        return str(ipaddress.ip_address(item))
    if "elem" in item:
        return _element(item["elem"]["val"])
    if "prefix" in item:  # nft writes ::ffff:0.0.0.0 where we write ::ffff:0:0
        return str(ipaddress.ip_network((item["prefix"]["addr"], item["prefix"]["len"])))
    low, high = (ipaddress.ip_address(text) for text in item["range"])
    return f"{low}-{high}"
