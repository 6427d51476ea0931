"""Relays that cut a connection at one named step of what passes over it: to a login node, and to a slurmrestd."""

from tests.support.cutting.cut import Cut, Step
from tests.support.cutting.handshake import Handshake, HandshakeRelay
from tests.support.cutting.rest import RestRelay, RestStep
from tests.support.cutting.sessions import SessionRelay, SessionStep

__all__ = [
    "Cut",
    "Handshake",
    "HandshakeRelay",
    "RestRelay",
    "RestStep",
    "SessionRelay",
    "SessionStep",
    "Step",
]
