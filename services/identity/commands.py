"""``edged whoami`` and ``edged ban``."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from edged import config as configuration
from edged.cli import CONFIG
from edged.config import Config
from edged.errors import BadRequest, Unavailable
from edged.identity import effects
from edged.identity.client import IdentityClient
from edged.identity.grants import Ban
from edged.identity.judge import shown
from edged.identity.wire import Explained
from edged.logs import rfc3339
from services.identity.callers import ADMIN
from services.identity.offline import explain_offline

Result = TypeVar("Result")


@click.command()
@click.argument("source", metavar="-")
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--offline", is_flag=True, help="Do not ask the running daemon; use its cached keys.")
def whoami(source: str, config_file: Path, as_json: bool, offline: bool) -> None:
    """Explain step by step where the token on standard input leads, or why it is refused.

    The only SOURCE is - : a token on a command line could be read by every user of the machine.
    Exits 0 when the token may act, 1 when it is refused.
    """
    if source != "-":
        raise click.UsageError("give the token on standard input: edged whoami - < token-file")
    token = sys.stdin.read(1 << 21).strip()
    config = configuration.load(config_file)
    found, live = _explained(config, token, offline)
    click.echo(_json(found, live=live) if as_json else _text(found, live=live))
    sys.exit(0 if found.verdict is not None else 1)


def _explained(config: Config, token: str, offline: bool) -> tuple[Explained, bool]:
    if not offline and len(token) <= config.identity.token_bytes:
        try:
            return ask(config, lambda identity: identity.explain(token)), True
        except Unavailable:
            pass  # not running here: decide with what it left on disk
    return explain_offline(config, token), False


def _text(found: Explained, *, live: bool) -> str:
    lines = [f"{number}. {step}" for number, step in enumerate(found.steps, 1)]
    if not live:
        lines.insert(0, "identity does not run here: decided with the cached keys and the bans on disk")
    verdict = found.verdict
    if verdict is None:
        return "\n".join([*lines, f"REFUSED ({found.code}): {found.refused}"])
    may = ", ".join(shown(capability) for capability in verdict.capabilities) or "nothing"
    return "\n".join(
        [*lines, f"ACCOUNT {verdict.account}, class {verdict.job_class.value}, VO {verdict.vo}; may: {may}"]
    )


def _json(found: Explained, *, live: bool) -> str:
    verdict = found.verdict
    tree: dict[str, object] = {"live": live, "steps": list(found.steps), "allowed": verdict is not None}
    if verdict is None:
        tree |= {"code": found.code, "reason": found.refused}
    else:
        tree |= {
            "account": verdict.account,
            "class": verdict.job_class.value,
            "vo": verdict.vo,
            "rule": verdict.rule,
            "principal": msgspec.to_builtins(verdict.principal),
            "may": [shown(capability) for capability in verdict.capabilities],
        }
    return json.dumps(tree, indent=2)


@click.group()
def ban() -> None:
    """Refuse a subject, group, client or token at once, everywhere in this site."""


@ban.command("add")
@CONFIG
@click.option("--issuer", default="", help="The issuer's url; needed with --subject.")
@click.option("--subject", default="", help="The token's sub.")
@click.option("--group", default="", help="A group and all its child groups.")
@click.option("--client", default="", help="An OAuth client id.")
@click.option("--token-id", default="", help="One token's jti.")
@click.option("--keep-jobs", is_flag=True, help="Let jobs already submitted run on.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="Ends by itself after so long.")
@click.option("--reason", default="", help="For the operators; the banned never see it.")
def add(
    *,
    config_file: Path,
    issuer: str,
    subject: str,
    group: str,
    client: str,
    token_id: str,
    keep_jobs: bool,
    hours: float | None,
    reason: str,
) -> None:
    """Ban whoever matches all the words given. In force everywhere within a second."""
    config = configuration.load(config_file)
    if issuer and not issuer.startswith("edged:") and issuer not in {one.url for one in config.issuers}:
        raise BadRequest(f"no [[issuer]] has url {issuer!r}")
    asked = Ban(
        id="",
        issuer=issuer,
        subject=subject,
        group=group,
        client=client,
        token_id=token_id,
        keep_jobs=keep_jobs,
        reason=reason,
        expires_at=time.time() + hours * 3600 if hours else None,
    )
    others = effects.of_ban(config, asked)
    made = ask(config, lambda identity: identity.add_ban(asked, me()))
    click.echo(
        "\n".join([f"{made.id}: banned {_words(made)}; jobs {'kept' if keep_jobs else 'cancelled'}", *others])
    )


@ban.command("list")
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_bans(config_file: Path, as_json: bool) -> None:
    """The bans that hold."""
    found = ask(configuration.load(config_file), lambda identity: identity.bans())
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(one) for one in found], indent=2))
        return
    for one in found:
        until = f"until {rfc3339(one.expires_at)}" if one.expires_at is not None else "for good"
        made = datetime.fromtimestamp(one.made_at, UTC).strftime("%Y-%m-%d")
        click.echo(f"{one.id}  {made}  {_words(one)}  {until}{'  keep_jobs' * one.keep_jobs}  {one.reason}")


@ban.command("remove")
@CONFIG
@click.argument("ban_id", metavar="ID")
def remove(config_file: Path, ban_id: str) -> None:
    """Lift the ban with this ID."""
    ask(configuration.load(config_file), lambda identity: identity.lift_ban(ban_id, me()))
    click.echo(f"{ban_id}: lifted")


def _words(one: Ban) -> str:
    names = ("issuer", "subject", "group", "client", "token_id")
    return " ".join(f"{name}={value!r}" for name in names if (value := getattr(one, name)))


def me() -> str:
    from getpass import getuser

    return f"{getuser()} on this machine"


def ask(config: Config, question: Callable[[IdentityClient], Awaitable[Result]]) -> Result:
    """One question to the running identity, as this machine's admin. Raises Unavailable."""

    async def asking() -> Result:
        return await question(IdentityClient(config, ADMIN))

    return asyncio.run(asking())
