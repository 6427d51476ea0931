"""The page, from a snapshot. Pure: same snapshot, same text. No script, nothing from elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from edged import __version__
from edged.usage import HOUR_S, Usage, figures, last_days, readable, size, summed
from services.portal import readings
from services.portal.audit import Answer
from services.portal.figures import Snapshot
from services.portal.html import DASH, Child, Safe, table, tag
from services.portal.plots import Plot, bars, palette
from services.portal.sessions import Session

DAYS = 30
UNDER_WAY = ("ACCEPTED", "PREPARING", "SUBMITTING", "QUEUED", "HELD", "RUNNING", "SUSPENDED", "FINISHING")
ENDED = ("FINISHED", "FAILED", "KILLED", "LOST")
WAITING = UNDER_WAY[:5]
SECTIONS = {
    "health": "Health",
    "jobs": "Jobs",
    "storage": "Storage",
    "cache": "Cache",
    "egress": "Egress",
    "refusals": "Refusals",
    "usage": "Usage",
}


def document(site: str, title: str, body: Child, session: Session | None) -> str:
    """A whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} {DASH} {site}"),
        tag("link", rel="stylesheet", href="/style.css"),
    )
    shown = tag(
        "body",
        tag("a", "Skip to the content", href="#main", class_="skip"),
        tag("header", tag("h1", tag("a", site, href="/")), _who(session)),
        tag("main", body, id="main", tabindex=-1),
        tag("footer", f"edged {__version__}"),
    )
    return f"<!doctype html>{tag('html', head, shown, lang='en')}"


def _who(session: Session | None) -> Safe | None:
    if session is None:
        return None
    out = tag("form", csrf(session), tag("button", "Sign out"), method="post", action="/signout")
    return tag("div", tag("span", session.who), out, class_="who")


def csrf(session: Session) -> Safe:
    """The hidden field every form carries."""
    return tag("input", type="hidden", name="csrf", value=session.csrf)


def sign_in(*, token: bool, oidc: bool, problem: str = "") -> Safe:
    """The ways in that the site has."""
    field = [
        tag(
            "input", name="username", value="admin", autocomplete="username", hidden=True
        ),  # for password managers
        tag("label", "Admin token", for_="token"),
        tag(
            "input", type="password", name="token", id="token", autocomplete="current-password", required=True
        ),
        tag("button", "Sign in"),
    ]
    return tag(
        "section",
        tag("h2", "Sign in"),
        tag("p", problem, role="alert", class_="bad") if problem else None,
        tag("p", tag("a", "Sign in with your institution", href="/signin/oidc", class_="button"))
        if oidc
        else None,
        tag("form", field, method="post", action="/signin", class_="signin") if token else None,
    )


def overview(now: Snapshot, clock: float) -> Safe:
    """The one page a sysadmin keeps open."""
    parts: dict[str, Sequence[Child]] = {
        "health": _health(now, clock),
        "jobs": _jobs(now),
        "storage": _storage(now),
        "cache": _cache(now),
        "egress": _egress(now),
        "refusals": _refusals(now),
        "usage": _usage(now, clock),
    }
    links = [tag("li", tag("a", text, href=f"#{name}")) for name, text in SECTIONS.items()]
    return Safe(
        tag("nav", tag("ul", links), aria_label="Sections")
        + search_form("")
        + "".join(
            tag(
                "section",
                tag("h2", SECTIONS[name], id=f"{name}-h"),
                content,
                id=name,
                aria_labelledby=f"{name}-h",
            )
            for name, content in parts.items()
        )
    )


def _health(now: Snapshot, clock: float) -> list[Child]:
    if not now.at:
        return [
            tag("p", "The services are being asked for the first time; load the page again.", role="status")
        ]
    age = max(0, round(clock - now.at))
    rows: list[list[Child]] = []
    for process in now.processes:
        if process.answered is None:
            rows.append([process.name, _mark(False, "does not answer"), process.address])
        elif not process.answered.not_ready:
            rows.append([process.name, _mark(True, "ready"), f"version {process.answered.version}"])
        else:
            rows += [
                [part, _mark(False, "not ready"), why] for part, why in process.answered.not_ready.items()
            ]
    wrong = sum(process.answered is None or not process.answered.ready for process in now.processes)
    told = (
        "Everything is ready." if not wrong else f"{wrong} of {len(now.processes)} processes need attention."
    )
    return [
        tag("p", _mark(not wrong, told), f" As of {age} s ago.", role="status"),
        table("Processes of this edge", ("Part", "State", "Detail"), rows, words=3),
        [tag("p", f"Not known now: {trouble}", class_="bad") for trouble in now.troubles],
    ]


def _mark(good: bool, text: str) -> Safe:
    """State in words and shape, never in colour alone."""
    sign = tag("span", "✓" if good else "✗", aria_hidden="true")
    return tag("span", sign, f" {text}", class_="good" if good else "bad")


def _jobs(now: Snapshot) -> list[Child]:
    states: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in now.jobs:
        states[one.vo, one.queue][one.state] += one.count
    rows: list[list[Child]] = [
        [
            vo,
            queue,
            *(sum(held[s] for s in group) for group in (WAITING, UNDER_WAY[5:])),
            *(held[s] for s in ENDED),
        ]
        for (vo, queue), held in sorted(states.items())
    ]
    heads = ("VO", "Queue", "Waiting", "Running", "Finished", "Failed", "Killed", "Lost")
    places = [
        [one.name, one.batch, "up" if one.up else "down", f"{one.cpus_free} of {one.cpus}", _gpus(one.gpus)]
        for one in now.partitions
    ]
    drained = ", ".join("all queues" if queue == "*" else queue for queue in now.drained)
    return [
        tag("p", f"Draining, new jobs are refused: {drained}.", class_="bad") if drained else None,
        table("Jobs not yet cleaned, by VO and queue", heads, rows, words=2),
        table("Free now", ("Partition", "Batch system", "State", "Cores free", "GPUs free"), places, words=3),
    ]


def _gpus(gpus: Mapping[str, tuple[int, int]]) -> str:
    return (
        ", ".join(f"{name.removeprefix('gpu:')}: {free} of {total}" for name, (total, free) in gpus.items())
        or DASH
    )


def _storage(now: Snapshot) -> list[Child]:
    spaces = [
        [s.export, size(s.used), size(s.total), f"{s.used / s.total:.0%}" if s.total else DASH]
        for s in readings.spaces(now.readings)
    ]
    running = now.readings.by("edged_storage_transfers", "vo", "kind")
    moved = now.readings.by("edged_storage_bytes_total", "vo", "kind")
    rows: list[list[Child]] = [
        [vo, kind, int(running.get((vo, kind), 0)), size(moved.get((vo, kind), 0))]
        for vo, kind in sorted({*running, *moved})
    ]
    return [
        table("Room of the exports", ("Export", "Used", "Size", "Full"), spaces),
        table("Transfers", ("VO", "Kind", "Running", "Bytes since start"), rows, words=2),
    ]


def _cache(now: Snapshot) -> list[Child]:
    rows = [
        [
            hit.source,
            f"{hit.requests:.0f}",
            f"{hit.hits / hit.requests:.1%}" if hit.requests else DASH,
            size(hit.sent),
        ]
        for hit in readings.hits(now.readings)
    ]
    resting = [
        url for (url,), value in now.readings.by("edged_cache_upstream_resting", "upstream").items() if value
    ]
    return [
        [tag("p", _mark(False, f"{url} fails and is left alone for a while.")) for url in resting],
        table("Requests since start", ("Source", "Requests", "Hits", "Sent"), rows),
    ]


def _egress(now: Snapshot) -> list[Child]:
    moved = now.readings.by("edged_egress_bytes_total", "vo", "destination", "direction")
    ended = now.readings.by("edged_egress_connections_total", "vo", "outcome")
    pairs = sorted({(vo, to) for vo, to, _ in moved})
    rows: list[list[Child]] = [
        [vo, to, *(size(moved.get((vo, to, way), 0)) for way in ("in", "out"))] for vo, to in pairs
    ]
    outcomes = [[vo, outcome, f"{count:.0f}"] for (vo, outcome), count in ended.items()]
    return [
        tag("p", f"{now.readings.total('edged_egress_tunnels'):.0f} tunnels open."),
        table("Bytes since start", ("VO", "Destination", "In", "Out"), rows, words=2),
        table("Connections since start", ("VO", "Outcome", "Count"), outcomes, words=2),
    ]


def _refusals(now: Snapshot) -> list[Child]:
    rows: list[list[Child]] = [
        [what, reason or DASH, count] for (what, reason), count in now.refusals.most_common(20)
    ]
    verdicts = now.readings.by("edged_identity_verdicts_total", "issuer", "outcome")
    judged = [[issuer, outcome, f"{count:.0f}"] for (issuer, outcome), count in verdicts.items()]
    return [
        table("Refused in the last 24 hours, from the audit log", ("What", "Reason", "Times"), rows, words=2),
        table("Tokens judged since start", ("Issuer", "Outcome", "Tokens"), judged, words=2),
    ]


def _usage(now: Snapshot, clock: float) -> list[Child]:
    days = _days(clock)
    totals = {row.vo: row.cpu_allocated_s + row.gpu_allocated_s for row in summed(now.usage, ["vo"])}
    colours = palette(totals)
    by_day = summed(now.usage, ["day", "vo"])
    plots = [
        bars(_plot(title, days, by_day, name), colours, f"plot-{name}")
        for name, title in (
            ("cpu_allocated_s", "CPU hours by day and VO"),
            ("gpu_allocated_s", "GPU hours by day and VO"),
            ("bytes_in", "Bytes in by day and VO"),
            ("bytes_out", "Bytes out by day and VO"),
        )
    ]
    return [
        tag("div", plots, class_="plots"),
        usage_table(f"Usage of the last {DAYS} days", now.usage, ("vo",)),
        usage_table("By queue and GPU kind", now.usage, ("vo", "queue", "gpu_kind")),
        tag("p", "The same as ", tag("a", "CSV", href="/usage.csv"), ", ", tag("a", "JSON", href="/usage.json"),
            ", and everything above as ", tag("a", "JSON", href="/summary.json"), "."),
    ]  # fmt: skip


def _days(clock: float) -> list[str]:
    first = last_days(DAYS, clock).begins
    return [time.strftime("%Y-%m-%d", time.gmtime(first + index * 86400)) for index in range(DAYS)]


def _plot(title: str, days: Sequence[str], rows: Sequence[Usage], name: str) -> Plot:
    hours = name.endswith("_s")
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        values[row.vo][row.day] = getattr(row, name) / (HOUR_S if hours else 1)
    return Plot(title, days, values, _hours if hours else size, binary=not hours)


def _hours(value: float) -> str:
    return f"{value:,.0f} h" if value >= 10 or value == 0 else f"{value:.1g} h"


def usage_table(caption: str, rows: Sequence[Usage], by: Sequence[str]) -> Safe:
    """Sums over ``by``; what was not measured says so."""
    shown = {
        "jobs": "Jobs", "finished": "Finished", "cpu_h": "CPU h", "cpu_efficiency": "CPU used",
        "gpu_h": "GPU h", "gpu_efficiency": "GPU used", "bytes_in": "In", "bytes_out": "Out",
    }  # fmt: skip
    lines: list[list[Child]] = []
    for row in summed(rows, by):
        found = figures(row)
        lines.append(
            [getattr(row, word) or DASH for word in by] + [_figure(row, name, found[name]) for name in shown]
        )
    heads = [{"vo": "VO", "queue": "Queue", "gpu_kind": "GPU kind"}.get(word, word) for word in by]
    return table(caption, [*heads, *shown.values()], lines, words=len(by))


def _figure(row: Usage, name: str, value: float | None) -> str:
    """Nothing allocated is nothing to measure; of what was measured in part, the part is told."""
    allocated, measured = {
        "cpu_efficiency": (row.cpu_allocated_s, row.cpu_measured_s),
        "gpu_efficiency": (row.gpu_allocated_s, row.gpu_measured_s),
    }.get(name, (1.0, 1.0))
    if allocated == 0:
        return DASH
    part = measured / allocated
    return readable(name, value) + (
        f" of the {part:.0%} measured" if value is not None and part < 0.99 else ""
    )


def search_form(text: str) -> Safe:
    """Looks into the audit log."""
    return tag(
        "form",
        tag("label", "Why was this refused? A job, subject, account or request id", for_="q"),
        tag("input", type="search", name="q", id="q", value=text, required=True, minlength=3, maxlength=200),
        tag("button", "Search"),
        method="get",
        action="/search",
        role="search",
    )


def found(text: str, answer: Answer) -> Safe:
    """The lines of the audit log that name ``text``."""
    rows: list[list[Child]] = []
    for line in answer.lines:
        who = ", ".join(f"{key} {value}" for key, value in line.who.items() if value)
        said = DASH if line.allowed is None else _mark(line.allowed, "allowed" if line.allowed else "refused")
        reason = "; ".join(filter(None, (line.reason, line.detail)))
        rows.append(
            [line.time, line.event, said, reason or DASH, who or DASH, line.account or DASH, line.job or DASH]
        )
    heads = ("Time", "What", "Decision", "Reason", "Who", "Account", "Job")
    more = "" if answer.whole else " There may be older lines: only the newest part of the log is searched."
    return tag(
        "section",
        search_form(text),
        tag("h2", f"Audit log: {text}"),
        tag("p", f"{len(answer.lines)} lines, newest first.{more}", role="status"),
        [tag("p", f"Cannot be read: {trouble}", class_="bad") for trouble in answer.unread],
        table(f"Decisions that name {text}", heads, rows, words=7),
    )
