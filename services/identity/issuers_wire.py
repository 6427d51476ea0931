"""What the signer asks of the fetcher, and what the fetcher tells it: msgpack packets, local only."""

from __future__ import annotations

import msgspec

from edged.identity.keycache import KeyDocument
from edged.identity.wire import Failure
from edged.identity.words import IssuerUrl

SOCKET = "issuers.sock"  # below [runtime] run


class Refresh(msgspec.Struct, frozen=True, tag=True):
    """A token named a key we do not have: look again (rate-limited). Answered after the look."""

    issuer: IssuerUrl


class ClaimsOf(msgspec.Struct, frozen=True, tag=True):
    """The issuer's own word on a token: userinfo or introspection, as configured."""

    issuer: IssuerUrl
    token: str


class Ask(msgspec.Struct, frozen=True, tag=True):
    """One question."""

    number: int
    what: Refresh | ClaimsOf


class Keys(msgspec.Struct, frozen=True, tag=True):
    """An issuer's keys, as of now; sent on connecting and at every fetch."""

    document: KeyDocument


class Refreshed(msgspec.Struct, frozen=True, tag=True):
    """The look is over; new keys, if any, were sent before this."""


class Claims(msgspec.Struct, frozen=True, tag=True):
    """A JSON object, as the issuer sent it."""

    json: bytes


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The answer to the ask of the same number."""

    number: int
    what: Refreshed | Claims | Failure


encode = msgspec.msgpack.Encoder().encode
decode_from_signer = msgspec.msgpack.Decoder(Ask).decode
decode_from_fetcher = msgspec.msgpack.Decoder(Keys | Answer).decode
