"""OpenAPI 3.1 from the operation tables, and a page a person can read without outside resources."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from edged import __version__
from edged.http.operations import Operation, Public, Requires
from edged.http.problems import STATUS

_REF = "#/components/schemas/{name}"
_TEXT = {status: kind.__doc__ or kind.code for kind, status in STATUS.items()}
_ALWAYS = (400, 500)


def document(title: str, operations: Sequence[Operation], *, server: str = "/") -> dict[str, Any]:
    """The OpenAPI document of a table."""
    types = [t for o in operations for t in (o.takes, o.returns) if _is_schema(t)]
    queries = [o.query for o in operations if o.query is not None]
    schemas, components = msgspec.json.schema_components([*types, *queries], ref_template=_REF)
    names = dict(zip([_key(t) for t in (*types, *queries)], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = operation.path.replace("...}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, names, components)
    problem = {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "request": {"type": "string"},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "servers": [{"url": server}],
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": problem},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _is_schema(kind: Any) -> bool:
    if kind in (None, bytes):
        return False
    return not (isinstance(kind, type) and issubclass(kind, web.StreamResponse))


def _key(kind: Any) -> str:
    return repr(kind)


def _operation(operation: Operation, names: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _identifier(operation),
        "parameters": [*_path_parameters(operation), *_query_parameters(operation, components)],
        "responses": _responses(operation, names),
    }
    if operation.takes is bytes:
        raw = {"schema": {"type": "string", "format": "binary"}}
        result["requestBody"] = {"required": True, "content": {"application/octet-stream": raw}}
    elif operation.takes is not None:
        content = {"application/json": {"schema": names[_key(operation.takes)]}}
        result["requestBody"] = {"required": True, "content": content}
    if not isinstance(operation.access, Public):
        scope = [operation.access.action.value] if isinstance(operation.access, Requires) else []
        result["security"] = [{"bearer": scope}]
    return result


def _identifier(operation: Operation) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", "_", operation.path).strip("_")
    return f"{operation.method.lower()}_{words}"


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)(?:\.\.\.)?}", operation.path)
    ]


def _query_parameters(operation: Operation, components: dict[str, Any]) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    schema = components[operation.query.__name__]
    required = set(schema.get("required", ()))
    return [
        {"name": name, "in": "query", "required": name in required, "schema": part}
        for name, part in schema.get("properties", {}).items()
    ]


def _responses(operation: Operation, names: dict[str, Any]) -> dict[str, Any]:
    good: dict[str, Any] = {"description": operation.summary}
    if _is_schema(operation.returns):
        good["content"] = {operation.media: {"schema": names[_key(operation.returns)]}}
    status = 204 if operation.returns is None and operation.status == 200 else operation.status
    answers: dict[str, Any] = {str(status): good}
    problems = {*operation.problems, *_ALWAYS}
    if not isinstance(operation.access, Public):
        problems |= {401, 403, 429, 503}
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for number in sorted(problems):
        answers[str(number)] = {"description": _TEXT.get(number, "An unexpected error."), "content": content}
    return answers


def page(title: str, operations: Sequence[Operation]) -> bytes:
    """A plain HTML table of the operations."""
    rows = "".join(
        f"<tr><td><code>{html.escape(o.method)}</code></td><td><code>{html.escape(o.path)}</code></td>"
        f"<td>{html.escape(o.summary)}</td><td>{html.escape(_access(o))}</td></tr>"
        for o in operations
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        "<style>body{font:16px/1.5 system-ui;margin:2rem auto;max-width:60rem;color-scheme:light dark}"
        "table{border-collapse:collapse;width:100%}td,th{padding:.3rem .6rem;text-align:left;"
        "border-bottom:1px solid #8884}</style>"
        f"<h1>{html.escape(title)}</h1><p>Version {html.escape(__version__)}. Machine-readable: "
        "<a href=/openapi.json>openapi.json</a>. Errors are <code>application/problem+json</code>.</p>"
        f"<table><thead><tr><th>Method<th>Path<th>What<th>Needs</thead><tbody>{rows}</tbody></table></html>"
    ).encode()


def _access(operation: Operation) -> str:
    access = operation.access
    return access.action.value if isinstance(access, Requires) else type(access).__name__.lower()
