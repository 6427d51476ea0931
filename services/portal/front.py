"""The portal's requests: who may see what, and the headers that keep a browser from being used against us."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from urllib.parse import parse_qsl, urlsplit

import msgspec
from aiohttp import web

from edged.config import Config
from edged.config.portal import Portal
from edged.errors import BadRequest, Denied, EdgeError, NotFound, TooLarge, Unauthenticated, Unsupported
from edged.http.problems import status_of
from edged.http.server import UNAUTHENTICATED
from edged.identity.words import Principal
from edged.logs import audit as audit_line
from edged.logs import get_logger
from edged.usage import GROUPS, as_csv, as_json, summed
from services.portal import audit, page
from services.portal.figures import Figures
from services.portal.html import Child, tag
from services.portal.oidc import BEGUN_S, Provider
from services.portal.sessions import Session, Sessions, same

log = get_logger("services.portal")

MAX_FORM = 16 << 10
POLICY = (
    "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "img-src 'none'; script-src 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "interest-cohort=()",
    "Cache-Control": "no-store",
}
SEARCHES = 2  # at once: each may read many megabytes

Answering = Callable[[web.BaseRequest], Awaitable[web.Response]]
Unbanned = Callable[[Principal], Awaitable[None]]
Showing = Callable[[web.BaseRequest, Session], Awaitable[web.Response]]


class PortalFront:
    """Answers requests. Everything but the sign-in and its style needs a session or the admin token.

    ``unbanned`` raises Denied for a principal whom the site has banned; asked with a ``provider`` only.
    """

    def __init__(
        self,
        config: Config,
        settings: Portal,
        figures: Figures,
        *,
        admin_token: str,
        provider: Provider | None,
        unbanned: Unbanned | None,
    ) -> None:
        self._config, self._settings = config, settings
        self._figures = figures
        self._provider, self._unbanned = provider, unbanned
        self._admin_token = admin_token
        self._sessions = Sessions(settings.session_s, settings.sessions)
        self._searches = asyncio.Semaphore(SEARCHES)
        self._style = resources.files("services.portal").joinpath("style.css").read_bytes()
        secure = settings.tls or settings.url.startswith("https:")
        self._cookie = "__Host-edged" if secure else "edged"
        self._begun = "__Host-edged-signin" if secure else "edged-signin"
        self._secure = secure
        self._open: dict[tuple[str, str], Answering] = {
            ("GET", "/style.css"): self._css,
            ("POST", "/signin"): self._token,
            ("GET", "/signin/oidc"): self._begin,
            ("GET", "/signin/oidc/callback"): self._end,
        }
        self._closed: dict[tuple[str, str], Showing] = {
            ("GET", "/"): self._overview,
            ("GET", "/search"): self._search,
            ("GET", "/usage.csv"): self._csv,
            ("GET", "/usage.json"): self._json,
            ("GET", "/summary.json"): self._summary,
            ("POST", "/signout"): self._sign_out,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request. Errors are pages for browsers and problems for programs."""
        try:
            response = await self._routed(request)
        except EdgeError as error:
            if "text/html" not in request.headers.get("Accept", ""):
                raise
            response = self._failure(error)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if self._secure:
            response.headers["Strict-Transport-Security"] = "max-age=31536000"
        return response

    async def _routed(self, request: web.BaseRequest) -> web.Response:
        method = "GET" if request.method == "HEAD" else request.method
        key = (method, request.rel_url.raw_path)
        if key in self._open:
            return await self._open[key](request)
        if key not in self._closed:
            if any(path == key[1] for _, path in (*self._open, *self._closed)):
                raise Unsupported("not a method of this page")
            raise NotFound("no such page")
        session = self._session(request)
        if session is None:
            return self._ask_to_sign_in(request)
        return await self._closed[key](request, session)

    # -- who ----------------------------------------------------------------------------------------

    def _session(self, request: web.BaseRequest) -> Session | None:
        """The cookie's; or, for programs that read, the admin token's. Raises Unauthenticated for a wrong one."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind:
            if (
                kind.lower() == "bearer"
                and self._is_admin(token.strip())
                and request.method in ("GET", "HEAD")
            ):
                return Session("admin token", "", 0.0)
            raise Unauthenticated("not the admin token")
        cookie = request.cookies.get(self._cookie, "")
        return self._sessions.get(cookie, time.monotonic()) if cookie else None

    def _is_admin(self, token: str) -> bool:
        return bool(self._admin_token) and same(token, self._admin_token)

    def _ask_to_sign_in(self, request: web.BaseRequest) -> web.Response:
        if "text/html" not in request.headers.get("Accept", ""):
            raise Unauthenticated("sign in, or send the admin token as a bearer token")
        return self._sign_in_page(401)

    def _sign_in_page(self, status: int, problem: str = "") -> web.Response:
        body = page.sign_in(token=bool(self._admin_token), oidc=self._provider is not None, problem=problem)
        return self._html("Sign in", body, None, status)

    async def _token(self, request: web.BaseRequest) -> web.Response:
        self._same_site(request)
        form = await _form(request)
        if not self._is_admin(form.get("token", "")):
            audit_line(
                "portal sign-in", who={"source": request.remote}, allowed=False, reason="wrong admin token"
            )
            response = self._sign_in_page(403, "That is not the admin token.")
            response[UNAUTHENTICATED] = True
            return response
        return self._signed_in("admin token")

    def _signed_in(self, who: str, principal: Principal | None = None) -> web.Response:
        audit_line("portal sign-in", who=_named(who, principal), allowed=True, reason="")
        response = _redirect("/")
        cookie = self._sessions.open(who, time.monotonic(), principal)
        self._set(response, self._cookie, cookie, self._settings.session_s)
        return response

    def _set(self, response: web.Response, name: str, value: str, life_s: float) -> None:
        # Lax: Strict would not come with the redirect that ends a sign-in at the provider
        response.set_cookie(
            name, value, max_age=int(life_s), path="/", secure=self._secure, httponly=True, samesite="Lax"
        )

    def _drop(self, response: web.Response, name: str) -> None:
        response.del_cookie(name, path="/", secure=self._secure, httponly=True, samesite="Lax")

    def _same_site(self, request: web.BaseRequest) -> None:
        """A form is sent from our own pages only. Raises Denied."""
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        if site is not None and site not in ("same-origin", "none"):
            raise Denied("this form was sent from another site")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("Host", ""):
            raise Denied("this form was sent from another site")

    async def _sign_out(self, request: web.BaseRequest, session: Session) -> web.Response:
        self._same_site(request)
        if not same((await _form(request)).get("csrf", ""), session.csrf):
            raise Denied("this form is too old: load the page again")
        self._sessions.close(request.cookies.get(self._cookie, ""))
        response = _redirect("/")
        self._drop(response, self._cookie)
        return response

    async def _begin(self, _request: web.BaseRequest) -> web.Response:
        if self._provider is None:
            raise NotFound("no such page")
        where, browser = await self._provider.begin(time.monotonic())
        response = _redirect(where)
        self._set(response, self._begun, browser, BEGUN_S)
        return response

    async def _end(self, request: web.BaseRequest) -> web.Response:
        if self._provider is None or self._unbanned is None:
            raise NotFound("no such page")
        query = request.rel_url.query
        if "error" in query:
            raise Denied("the provider did not sign you in", detail=query["error"][:200])
        browser = request.cookies.get(self._begun, "")
        principal: Principal | None = None
        try:
            principal = await self._provider.end(
                query.get("state", ""), query.get("code", ""), browser, time.monotonic()
            )
            await self._unbanned(principal)
        except Denied as error:
            who = principal.subject if principal is not None else str(error.values.get("subject", ""))
            audit_line(
                "portal sign-in",
                who=_named(who, principal),
                allowed=False,
                reason=error.message,
                detail=error.detail,
            )
            raise
        response = self._signed_in(principal.subject, principal)
        self._drop(response, self._begun)
        return response

    def banned(self, covers: Callable[[Principal], bool], _keep_jobs: bool) -> None:
        """A ban was made: whom it covers is signed out."""
        for who in self._sessions.end(covers):
            audit_line("portal session ended", who={"subject": who}, allowed=False, reason="banned")

    # -- what ---------------------------------------------------------------------------------------

    async def _overview(self, _request: web.BaseRequest, session: Session) -> web.Response:
        return self._html("Overview", page.overview(self._figures.now, time.time()), session)

    async def _search(self, request: web.BaseRequest, session: Session) -> web.Response:
        text = request.rel_url.query.get("q", "").strip()
        if not 3 <= len(text) <= 200:
            raise BadRequest("search for 3 to 200 characters")
        settings = self._settings
        async with self._searches:
            answer = await asyncio.to_thread(
                audit.search,
                audit.files(self._config),
                text,
                limit=settings.audit_bytes,
                most=settings.found,
            )
        if "text/html" not in request.headers.get("Accept", ""):
            return _json(msgspec.json.encode(answer))
        return self._html("Search", page.found(text, answer), session)

    async def _csv(self, _request: web.BaseRequest, _session: Session) -> web.Response:
        response = web.Response(
            text=as_csv(summed(self._figures.now.usage, GROUPS), GROUPS), content_type="text/csv"
        )
        response.headers["Content-Disposition"] = 'attachment; filename="usage.csv"'
        return response

    async def _json(self, _request: web.BaseRequest, _session: Session) -> web.Response:
        return _json(as_json(summed(self._figures.now.usage, GROUPS), GROUPS).encode())

    async def _summary(self, _request: web.BaseRequest, _session: Session) -> web.Response:
        now = self._figures.now
        told = {
            "at": now.at,
            "processes": now.processes,
            "jobs": [msgspec.structs.asdict(count) for count in now.jobs],
            "partitions": now.partitions,
            "drained": now.drained,
            "refusals": [
                {"what": what, "reason": reason, "times": times}
                for (what, reason), times in now.refusals.most_common()
            ],
            "troubles": now.troubles,
        }
        return _json(msgspec.json.encode(told))

    async def _css(self, _request: web.BaseRequest) -> web.Response:
        return web.Response(
            body=self._style, content_type="text/css", headers={"Cache-Control": "max-age=3600"}
        )

    def _failure(self, error: EdgeError) -> web.Response:
        if error.detail or status_of(error) >= 500:
            log.warning("page not shown", extra={"code": error.code, "reason": str(error)})
        back = tag("p", tag("a", "Back to the overview", href="/"))
        body = tag("section", tag("h2", "This did not work"), tag("p", error.message, role="alert"), back)
        response = self._html("Error", body, None, status_of(error))
        if isinstance(error, Unauthenticated):
            response[UNAUTHENTICATED] = True
        return response

    def _html(self, title: str, body: Child, session: Session | None, status: int = 200) -> web.Response:
        text = page.document(self._config.site.name, title, body, session)
        return web.Response(text=text, content_type="text/html", status=status)


def _named(who: str, principal: Principal | None) -> dict[str, object]:
    """For the audit log."""
    return {"subject": who} if principal is None else {"subject": who, "issuer": principal.issuer}


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _redirect(where: str) -> web.Response:
    return web.Response(status=303, headers={"Location": where})


async def _form(request: web.BaseRequest) -> dict[str, str]:
    """A small form. Raises TooLarge, BadRequest."""
    if (request.content_length or 0) > MAX_FORM:
        raise TooLarge("this form is too long")
    if request.content_type != "application/x-www-form-urlencoded":
        raise BadRequest("not a form")
    raw = await request.content.read(MAX_FORM + 1)
    while len(raw) <= MAX_FORM and (more := await request.content.read(MAX_FORM + 1)):
        raw += more
    if len(raw) > MAX_FORM:
        raise TooLarge("this form is too long")
    return dict(parse_qsl(raw.decode("utf-8", "replace"), max_num_fields=20))
