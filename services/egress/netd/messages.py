"""All that can be said to netd, and its answers. Anything else ends the connection.

One SEQPACKET packet is one msgpack message of at most MAX bytes; a long answer comes as several, the
last of them without ``more``.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

MAX = 64 * 1024
SOCKET = Path("netd.sock")


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all."""


class Answers(Message, frozen=True, tag=True):
    """What the DNS said of a host that a destination names. Addresses are checked against the deny list."""

    host: str
    addresses: tuple[str, ...]
    ttl_s: int


class Withdraw(Message, frozen=True, tag=True):
    """An address inside or outside gets nothing for so long; its flows are cut."""

    address: str
    for_s: int


class TakeUsage(Message, frozen=True, tag=True):
    """The counters as they are: running totals."""


class Plan(Message, frozen=True, tag=True):
    """What ``apply`` would change, without changing it."""


class Apply(Message, frozen=True, tag=True):
    """Read the root-owned configuration again and make it so."""


class Show(Message, frozen=True, tag=True):
    """The running table."""


class Off(Message, frozen=True, tag=True):
    """Let nothing from inside pass; ``remove``: take the table away altogether."""

    remove: bool = False


FromFront = Answers | Withdraw | TakeUsage
FromAdmin = Answers | Withdraw | TakeUsage | Plan | Apply | Show | Off


class Counted(msgspec.Struct, frozen=True, array_like=True):
    """One account: a source's bytes under one connection mark."""

    address: str
    rule: str
    destination: str
    job_mark: int
    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int


class RefusedFlow(msgspec.Struct, frozen=True, array_like=True):
    """A flow that was refused, and how often."""

    source: str
    destination: str
    protocol: str
    port: int
    packets: int


class Text(Message, frozen=True, tag=True):
    """Lines for a person."""

    text: str
    more: bool = False


class Usage(Message, frozen=True, tag=True):
    """Some of the counters."""

    counted: tuple[Counted, ...]
    refused: tuple[RefusedFlow, ...]
    more: bool = False


class Failed(Message, frozen=True, tag=True):
    """Nothing was changed; why."""

    message: str
    more: bool = False


Answer = Text | Usage | Failed

encode = msgspec.msgpack.Encoder().encode
front_message = msgspec.msgpack.Decoder(FromFront).decode
admin_message = msgspec.msgpack.Decoder(FromAdmin).decode
answer = msgspec.msgpack.Decoder(Answer).decode
