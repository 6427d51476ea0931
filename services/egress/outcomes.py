"""How each end of a wish to go out looks to a client, and what is said of a refusal."""

from __future__ import annotations

from dataclasses import dataclass

from edged.egress.outcomes import Outcome
from services.egress.socks import Reply


@dataclass(frozen=True, slots=True)
class Wire:
    """How an outcome looks to a client: HTTP status, RFC 9209 error type, SOCKS reply."""

    status: int
    error: str
    socks: Reply


WIRE = {
    Outcome.NO_SOURCE: Wire(403, "http_request_denied", Reply.NOT_ALLOWED),
    Outcome.NO_RULE: Wire(403, "http_request_denied", Reply.NOT_ALLOWED),
    Outcome.RULE: Wire(403, "http_request_denied", Reply.NOT_ALLOWED),
    Outcome.ADDRESS: Wire(403, "destination_ip_prohibited", Reply.NOT_ALLOWED),
    Outcome.TOKEN: Wire(407, "http_request_denied", Reply.NOT_ALLOWED),
    Outcome.LIMIT: Wire(429, "connection_limit_reached", Reply.NOT_ALLOWED),
    Outcome.NAME: Wire(502, "dns_error", Reply.HOST_UNREACHABLE),
    Outcome.UNREACHABLE: Wire(502, "connection_refused", Reply.REFUSED),
    Outcome.TIMEOUT: Wire(504, "connection_timeout", Reply.EXPIRED),
    Outcome.MALFORMED: Wire(400, "http_request_error", Reply.FAILURE),
    Outcome.BUSY: Wire(503, "proxy_internal_error", Reply.FAILURE),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An outcome other than passed, with words that are safe to show."""

    outcome: Outcome
    reason: str
    rule: str = ""
    destination: str = ""
