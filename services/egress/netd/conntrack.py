"""Connection tracking over netlink: who talks to whom through this machine, and cutting it.

Message layout: linux/netfilter/nfnetlink_conntrack.h, netlink(7). Needs CAP_NET_ADMIN.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from edged.egress.addresses import Address
from edged.errors import Unavailable

_NETFILTER = 12
_GET, _DELETE = 0x101, 0x102  # subsystem 1 (ctnetlink), IPCTNL_MSG_CT_GET and _DELETE
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_BITS = 0x3FFF
_TUPLE_ORIG, _MARK, _ID, _ZONE = 1, 8, 12, 18
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUM, _PROTO_DPORT = 1, 3
_ADDRESSES = {1: "source", 3: "source", 2: "destination", 4: "destination"}
_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Flow:
    """One tracked connection in its original direction. ``key`` names it to the kernel."""

    source: Address
    destination: Address
    protocol: int
    port: int
    mark: int
    key: bytes


class Conntrack:
    """A netlink socket. Raises Unavailable where the kernel tracks no connections or refuses us."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
            self._socket.bind((0, 0))
        except OSError as error:
            raise Unavailable("no netlink to connection tracking", detail=str(error)) from error
        self._socket.settimeout(_WAIT_S)
        self._number = 0

    def close(self) -> None:
        self._socket.close()

    def flows(self) -> Iterator[Flow]:
        """All connections of both families."""
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in self._request(_GET, _REQUEST | _DUMP, int(family), b""):
                flow = flow_of(body)
                if flow is not None:
                    yield flow

    def cut(self, flow: Flow) -> bool:
        """Forget a connection: its next packet is judged as new. False when it was gone already."""
        family = socket.AF_INET if flow.source.version == 4 else socket.AF_INET6
        try:
            for _ in self._request(_DELETE, _REQUEST | _ACK, int(family), flow.key):
                pass
        except FileNotFoundError:
            return False
        return True

    def _request(self, kind: int, flags: int, family: int, attributes: bytes) -> Iterator[bytes]:
        self._number += 1
        body = struct.pack("=BBH", family, 0, 0) + attributes
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._number, 0) + body)
        while True:
            data = self._socket.recv(1 << 20)
            at = 0
            while at < len(data):
                length, what, _, number, _ = _HEADER.unpack_from(data, at)
                payload = data[at + _HEADER.size : at + length]
                at += (length + 3) & ~3
                if number != self._number:
                    continue
                if what == _DONE:
                    return
                if what == _ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield payload[4:]  # after nfgenmsg


def attributes_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type (without flag bits) and payload of each attribute."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_BITS, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def flow_of(body: bytes) -> Flow | None:
    """A flow from a message's attributes; None for one without addresses."""
    found = dict(attributes_of(body))
    tuple_of = dict(attributes_of(found.get(_TUPLE_ORIG, b"")))
    ends = {
        _ADDRESSES[kind]: ipaddress.ip_address(value)
        for kind, value in attributes_of(tuple_of.get(_TUPLE_IP, b""))
        if kind in _ADDRESSES
    }
    transport = dict(attributes_of(tuple_of.get(_TUPLE_PROTO, b"")))
    if len(ends) != 2 or _PROTO_NUM not in transport:
        return None
    port = int.from_bytes(transport.get(_PROTO_DPORT, b"\0\0"), "big")
    mark = int.from_bytes(found.get(_MARK, b"\0\0\0\0"), "big")
    key = b"".join(
        _attribute(kind, found[kind], nested=kind == _TUPLE_ORIG)
        for kind in (_TUPLE_ORIG, _ID, _ZONE)
        if kind in found
    )
    return Flow(ends["source"], ends["destination"], transport[_PROTO_NUM][0], port, mark, key)


def _attribute(kind: int, payload: bytes, *, nested: bool) -> bytes:
    flagged = kind | (0x8000 if nested else 0)
    padding = b"\0" * (-len(payload) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), flagged) + payload + padding
