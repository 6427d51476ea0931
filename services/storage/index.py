"""The HTML view of a collection, for people with a token and a browser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape as html_escape

from aiohttp import web

from edged.accounts.api import Entry, Files, Kind
from services.storage.exchange import Exchange
from services.storage.namespace import Above, escape
from services.storage.properties import SECOND_NS, display_name, iso_date
from services.storage.sending import Chunks

PIECE = 500  # entries a write
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em}"
    "table{border-collapse:collapse;width:100%}td,th{padding:.2em .6em;text-align:left}"
    "td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}tr:nth-child(even){background:#8881}"
)
TAIL = "</tbody></table></body></html>\n"


class Index:
    """GET on a collection."""

    def __init__(self, files: Files, limit: int) -> None:
        self._files = files
        self._limit = limit

    async def page(self, exchange: Exchange, _entry: Entry) -> web.StreamResponse:
        """The members, names first; long ones in pieces."""
        entries = await self._files.list(exchange.grant, exchange.target.place, limit=self._limit)
        entries = sorted(entries, key=lambda e: (e.kind is not Kind.DIRECTORY, e.name))
        base = exchange.target.href.rstrip("/") + "/"
        page = Chunks(exchange.request, 200, HEADERS.items())
        for piece in pages(exchange.target.key, base, entries):
            await page.write(piece.encode("utf-8", "replace"))
        return await page.end()

    def above(self, above: Above, vo: str) -> web.Response:
        """A collection that only leads to exports."""
        rows = "".join(_row(e.prefix + "/", e.prefix, "", "") for e in above.exports if e.vo == vo)
        return web.Response(body=(_head(above.href or "/") + rows + TAIL).encode(), headers=HEADERS)


def pages(title: str, base: str, entries: Sequence[Entry]) -> Iterator[str]:
    """The document in pieces of PIECE rows."""
    yield _head(title) + _row("../", "..", "", "")
    for start in range(0, len(entries), PIECE):
        yield "".join(_entry_row(base, entry) for entry in entries[start : start + PIECE])
    yield TAIL


def _head(title: str) -> str:
    shown = display_name(title)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{shown}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{shown}</h1><table><thead><tr><th>Name</th>"
        '<th class="n">Bytes</th><th>Modified</th></tr></thead><tbody>\n'
    )


def _entry_row(base: str, entry: Entry) -> str:
    directory = entry.kind is Kind.DIRECTORY
    slash = "/" if directory else ""
    name = display_name(entry.name) + slash
    size = "" if directory else str(entry.size)
    return _row(base + escape(entry.name) + slash, name, size, iso_date(entry.mtime_ns // SECOND_NS))


def _row(href: str, name: str, size: str, modified: str) -> str:
    """``name`` is already escaped."""
    return (
        f'<tr><td><a href="{html_escape(href)}">{name}</a></td><td class="n">{size}</td>'
        f"<td>{modified}</td></tr>\n"
    )
