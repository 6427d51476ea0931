"""From a table of operations to a handler: routes, access, decoding, OpenAPI."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any
from urllib.parse import unquote

import msgspec
from aiohttp import HttpVersion11, web

from edged import metrics
from edged.errors import (
    BadRequest,
    Denied,
    EdgeError,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unsupported,
)
from edged.http import openapi
from edged.http.operations import PUBLIC, Admin, Call, Operation, Public, Reply, Requires
from edged.http.request import Headed
from edged.http.underway import UnderWay
from edged.identity.client import Verdicts
from edged.identity.words import Verdict
from edged.logs import audit

OPERATION_SECONDS = metrics.histogram(
    "operation_seconds", "Time an API operation took, in seconds.", ("operation", "outcome")
)
_encode = msgspec.json.Encoder().encode


class Api:
    """Answers requests for one table. Mount several with ``Mounts``."""

    def __init__(
        self, title: str, operations: Sequence[Operation], identity: Verdicts, *, admins: Sequence[str] = ()
    ) -> None:
        self.title = title
        self.operations = tuple(operations)
        self._identity = identity
        self._under_way = UnderWay(identity)
        self._admins = frozenset(admins)
        self._exact: dict[str, dict[str, Operation]] = {}
        self._templates: list[tuple[tuple[str, ...], dict[str, Operation]]] = []
        self._decoders: dict[int, msgspec.json.Decoder[Any]] = {}
        for operation in (*self.operations, *self._about()):
            self._add(operation)

    def _about(self) -> tuple[Operation, ...]:
        """The document and the page that describe the table."""
        # fmt: off
        return (
            Operation(method="GET", path="/openapi.json", access=PUBLIC, run=self._document,
                      summary="This API as OpenAPI 3.1", returns=dict[str, Any]),
            Operation(method="GET", path="/", access=PUBLIC, run=self._page,
                      summary="This API for people", returns=bytes, media="text/html"),
        )
        # fmt: on

    async def _document(self, _call: Call) -> dict[str, Any]:
        return openapi.document(self.title, self.operations)

    async def _page(self, _call: Call) -> bytes:
        return openapi.page(self.title, self.operations)

    def _add(self, operation: Operation) -> None:
        if operation.takes not in (None, bytes):
            self._decoders[id(operation)] = msgspec.json.Decoder(operation.takes)
        if "{" not in operation.path:
            self._exact.setdefault(operation.path, {})[operation.method] = operation
            return
        segments = tuple(operation.path.split("/"))
        for known, methods in self._templates:
            if known == segments:
                methods[operation.method] = operation
                return
        self._templates.append((segments, {operation.method: operation}))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Route, decide, decode, run, encode. Raises EdgeError; the server makes problems of them."""
        operation, path = self.find(request.method, request.rel_url.raw_path)
        started = time.perf_counter()
        outcome = "error"
        try:
            verdict = await self._admit(operation, request)
            with self._under_way.of(verdict) if verdict is not None else nullcontext():
                result = await self._run(operation, request, verdict, path)
            outcome = "ok"
        except EdgeError as error:
            outcome = error.code
            raise
        finally:
            label = f"{operation.method} {operation.path}"
            OPERATION_SECONDS.labels(label, outcome).observe(time.perf_counter() - started)
        return _response(operation, result)

    async def _run(
        self, operation: Operation, request: web.BaseRequest, verdict: Verdict | None, path: dict[str, str]
    ) -> Any:
        query = _query(operation, request)
        if operation.takes is not None:
            invite(request)
        body = await self._body(operation, request)
        return await operation.run(
            Call(request=request, verdict=verdict, path=path, query=query, body=body)  # type: ignore[arg-type]
        )

    def find(self, method: str, raw_path: str) -> tuple[Operation, dict[str, str]]:
        """The operation of a path still percent-encoded, and its parameters. Raises NotFound."""
        methods, path = self._exact.get(raw_path), dict[str, str]()
        if methods is None:
            methods, path = self._match(raw_path.split("/"))
        operation = methods.get("GET" if method == "HEAD" else method)
        if operation is None:
            raise Unsupported(f"{method} is not possible here; {', '.join(sorted(methods))} is")
        return operation, path

    def _match(self, segments: list[str]) -> tuple[dict[str, Operation], dict[str, str]]:
        for template, methods in self._templates:
            found = _match(template, segments)
            if found is not None:
                return methods, found
        raise NotFound("no such path")

    async def _admit(self, operation: Operation, request: web.BaseRequest) -> Verdict | None:
        access = operation.access
        if isinstance(access, Public):
            return None
        verdict = await self._identity.verdict(bearer(request))
        reason = self._refusal(operation, verdict)
        if reason:
            audit(
                f"{operation.method} {operation.path}",
                who=verdict.principal.for_log(),
                account=verdict.account,
                allowed=False,
                reason=reason,
            )
            raise Denied(reason)
        return verdict

    def _refusal(self, operation: Operation, verdict: Verdict) -> str:
        access = operation.access
        if isinstance(access, Requires) and not verdict.has(access.action):
            return f"the token has no {access.action.value}"
        if isinstance(access, Admin) and not self.is_admin(verdict):
            return "only for the site's admins"
        return ""

    def is_admin(self, verdict: Verdict) -> bool:
        """Whether the token's groups are among [identity] admins."""
        return not self._admins.isdisjoint(verdict.principal.groups)

    async def _body(self, operation: Operation, request: web.BaseRequest) -> Any:
        if operation.takes in (None, bytes):
            return None
        data = await read_body(request, operation.max_body)
        try:
            return self._decoders[id(operation)].decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"body: {error}") from None


class Mounts:
    """Several handlers on one listener, by path prefix; the longest prefix wins."""

    def __init__(self, mounts: dict[str, Any]) -> None:
        self._mounts = sorted(mounts.items(), key=lambda item: -len(item[0]))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass the request on."""
        path = request.rel_url.raw_path
        for prefix, handler in self._mounts:
            if path.startswith(prefix):
                response: web.StreamResponse = await handler(request)
                return response
        raise NotFound("no such path")


def _match(template: tuple[str, ...], segments: list[str]) -> dict[str, str] | None:
    """Parameters, decoded, when the path fits. ``{rest...}`` as last segment takes all that follows.

    Raises BadRequest for what would decode into other segments.
    """
    path: dict[str, str] = {}
    for index, part in enumerate(template):
        if part.endswith("...}"):
            rest = segments[index:]
            if not rest:
                return None
            if any("%2f" in segment.lower() for segment in rest):
                raise BadRequest("a name in the path has an encoded slash")
            path[part[1:-4]] = "/".join(map(unquote, rest))
            return path
        if index >= len(segments):
            return None
        if part.startswith("{"):
            if not segments[index]:
                return None
            path[part[1:-1]] = unquote(segments[index])
        elif part != segments[index]:
            return None
    return path if len(template) == len(segments) else None


def bearer(request: Headed) -> str:
    """The token of the one Authorization header (RFC 6750 §2.1). Raises Unauthenticated without one."""
    values = set(request.headers.getall("Authorization", ()))
    if not values:
        raise Unauthenticated("a bearer token is needed")
    if len(values) > 1:
        raise BadRequest("several different Authorization headers")
    scheme, _, token = values.pop().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("a bearer token is needed")
    return token.strip()


def invite(request: web.BaseRequest) -> None:
    """Send ``100 Continue`` if it was asked for (RFC 9110 §10.1.1). Raises BadRequest for what else is expected."""
    expected = request.headers.get("Expect", "")
    if not expected:
        return
    if expected.lower() != "100-continue":
        raise BadRequest("Expect: only 100-continue is known")
    if request.transport is not None and request.version >= HttpVersion11:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def read_body(request: web.BaseRequest, limit: int) -> bytes:
    """The whole body. Raises TooLarge as soon as it is over ``limit`` bytes."""
    if request.content_length is not None and request.content_length > limit:
        raise TooLarge(f"body over {limit} bytes")
    parts: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"body over {limit} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _query(operation: Operation, request: web.BaseRequest) -> Any:
    given = request.rel_url.query
    if operation.query is None:
        if given and operation.takes is not bytes:
            raise BadRequest(f"query: unknown parameter {next(iter(given))!r}")
        return None
    values: dict[str, str] = {}
    for key, value in given.items():
        if key in values:
            raise BadRequest(f"query: {key!r} given twice")
        values[key] = value
    try:
        return msgspec.convert(values, operation.query, strict=False)
    except msgspec.ValidationError as error:
        raise BadRequest(f"query: {error}") from None


def _response(operation: Operation, result: Any) -> web.StreamResponse:
    if isinstance(result, web.StreamResponse):
        return result
    status, headers = operation.status, {}
    if isinstance(result, Reply):
        status, headers, result = result.status, result.headers, result.body
    if result is None and operation.returns is None:
        return web.Response(status=204 if status == 200 else status, headers=headers)
    body = result if isinstance(result, bytes) else _encode(result)
    return web.Response(status=status, body=body, content_type=operation.media, headers=headers)
