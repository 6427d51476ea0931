"""Two listeners cannot have one address: said here, and not by the second of two services."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edged.config.base import Section

if TYPE_CHECKING:
    from edged.config.load import Config

EVERY = {"0.0.0.0": "IPv4", "[::]": "IPv6"}  # noqa: S104 - compared, not bound


def listener_problems(config: Config) -> Iterator[str]:
    """Each address that an earlier one has, or that another one of all addresses covers."""
    seen: list[tuple[str, str]] = []
    for path, address in listeners(config):
        for where, before in seen:
            if _same(address, before):
                yield f"{path}: {address}: {where} has {'it' if address == before else before} already"
                break
        seen.append((path, address))


def listeners(config: Config) -> Iterator[tuple[str, str]]:
    """Dotted path and address of everything that listens."""
    for name in ("identity", "jobs", "storage", "cache", "egress", "portal"):
        section = getattr(config, name)
        if section is not None:
            yield from _below(name, section)
    yield from _of_xrootd(config)
    yield "observe.listen", config.observe.listen
    for name, address in config.observe.services.items():
        yield f"observe.services.{name}", address


def _below(path: str, section: Section) -> Iterator[tuple[str, str]]:
    """Every ``listen`` of a section and the sections in it."""
    for key, field in type(section).model_fields.items():
        value, name = getattr(section, key), field.alias or key
        if key == "listen":
            yield from ((f"{path}.listen[{index}]", address) for index, address in enumerate(value))
        elif isinstance(value, Section):
            yield from _below(f"{path}.{name}", value)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, Section):
                    yield from _below(f"{path}.{name}[{index}]", item)


def _of_xrootd(config: Config) -> Iterator[tuple[str, str]]:
    """The servers listen on every address."""
    settings = config.storage.xrootd if config.storage is not None else None
    if settings is None:
        return
    yield "storage.xrootd.port", f"0.0.0.0:{settings.port}"
    if settings.proxy is not None:
        yield "storage.xrootd.proxy.port", f"0.0.0.0:{settings.proxy.port}"


def _same(one: str, other: str) -> bool:
    """Whether the second of the two would be refused by the kernel. Port 0 is any free one."""
    if one == other:
        return not one.endswith(":0")
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    if port != other_port or port == "0" or one.startswith("/") or other.startswith("/"):
        return False
    return EVERY.get(host) == _family(other_host) or EVERY.get(other_host) == _family(host)


def _family(host: str) -> str:
    return "IPv6" if ":" in host else "IPv4"
