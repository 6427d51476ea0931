"""Digests kept beside a file, in extended attributes: XRootD's own form, and one of ours that knows more.

``XrdCks.<algorithm>`` is shared with XRootD: 96 bytes, big-endian (XrdCksData), valid while its time
equals the file's mtime in whole seconds. A file changed twice within one second would pass, so we
believe it only when it was computed in a later second than the mtime, or when ``edged.digests``,
which also names size, inode and nanoseconds, agrees.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import msgspec

from edged.accounts.api import Entry

OURS = "edged.digests"
SHARED = "XrdCks."
SHARED_ALGORITHMS = ("adler32", "crc32c", "md5")
_LAYOUT = struct.Struct(
    ">16sqihbb64s"
)  # name, file mtime, seconds until computed, reserved x2, length, value
SECOND_NS = 1_000_000_000


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Our attribute: digests, and the file state they belong to."""

    size: int
    inode: int
    mtime_ns: int
    digests: dict[str, bytes]

    def fits(self, entry: Entry) -> bool:
        """Whether it describes the file as it is now. inode 0: written before the inode was known."""
        return self.size == entry.size and self.mtime_ns == entry.mtime_ns and self.inode in (0, entry.inode)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def pack_shared(algorithm: str, value: bytes, mtime_s: int, computed_after_s: int = 0) -> bytes:
    """XRootD's 96 bytes."""
    after = min(max(computed_after_s, 0), 2**31 - 1)
    return _LAYOUT.pack(algorithm.encode(), mtime_s, after, 0, 0, len(value), value)


def unpack_shared(data: bytes) -> tuple[str, bytes, int, int] | None:
    """``(algorithm, value, mtime_s, computed_after_s)``; None when malformed."""
    if len(data) != _LAYOUT.size:
        return None
    name, mtime_s, after, _, _, length, value = _LAYOUT.unpack(data)
    if not 0 < length <= 64:
        return None
    return name.rstrip(b"\0").decode("ascii", "replace"), value[:length], mtime_s, after


def to_keep(
    digests: Mapping[str, bytes], size: int, inode: int, mtime_ns: int, now_ns: int
) -> dict[str, bytes]:
    """The attributes that keep ``digests`` of a file in this state."""
    kept = {OURS: _encode(Record(size, inode, mtime_ns, dict(digests)))}
    mtime_s = mtime_ns // SECOND_NS
    for algorithm in SHARED_ALGORITHMS:
        if algorithm in digests:
            kept[SHARED + algorithm] = pack_shared(
                algorithm, digests[algorithm], mtime_s, now_ns // SECOND_NS - mtime_s
            )
    return kept


def known(attributes: Mapping[str, bytes], entry: Entry) -> dict[str, bytes]:
    """The digests that are true of ``entry``; stale and malformed ones are left out."""
    found: dict[str, bytes] = {}
    for algorithm in SHARED_ALGORITHMS:
        shared = unpack_shared(attributes.get(SHARED + algorithm, b""))
        if shared is None or shared[0] != algorithm:
            continue
        _, value, mtime_s, after = shared
        if mtime_s == entry.mtime_ns // SECOND_NS and after >= 1:
            found[algorithm] = value
    if OURS in attributes:
        try:
            record = _decode(attributes[OURS])
        except msgspec.MsgspecError:
            return found
        if record.fits(entry):
            found.update(record.digests)
    return found
