"""Who uses the servers now, for who asks what a ban would interrupt."""

from __future__ import annotations

import socket

import msgspec

from edged.config import Config
from edged.identity.grants import Ban
from edged.identity.packets import PACKET_BYTES
from edged.identity.words import Principal
from services.storage.xrootd import planning

SHOWN = 10
MOST = 200  # of one server, so that the answer fits a packet
ASK_S = 5.0

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, list[Principal]]).decode


def encode(users: dict[str, list[Principal]]) -> bytes:
    """Instance → who has a session there."""
    return _encode({name: found[-MOST:] for name, found in users.items()})


def effects(config: Config, ban: Ban) -> list[str]:
    """What a ban does to the root:// view: a server that ends to cut one session cuts them all."""
    if config.storage is None or config.storage.xrootd is None:
        return []
    lines = []
    for name, found in sorted(ask(config).items()):
        others = sorted({who.subject for who in found if not ban.covers(who)})
        if len(others) == len({who.subject for who in found}):
            continue
        shown = ", ".join(others[:SHOWN]) + (
            f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        )
        whom = f"interrupts {shown}" if others else "interrupts nobody else"
        lines.append(f"root:// server {name} is started anew to cut the sessions, which {whom}")
    return lines


def ask(config: Config) -> dict[str, list[Principal]]:
    """The running view's answer; nothing where none runs."""
    path = planning.of(config, multiuser=False).gate
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(ASK_S)
        try:
            sock.connect(str(path))
            sock.send(b"users *")
            return _decode(sock.recv(PACKET_BYTES))
        except (OSError, msgspec.MsgspecError):
            return {}
