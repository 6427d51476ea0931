"""`edged egress`: why a connection is let through or refused, who used what, and what NAT does."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import sys
import time
from datetime import datetime
from pathlib import Path

import click
import msgspec

from edged import config as configuration
from edged.config import Config
from edged.config.egress import Egress, Way
from edged.egress.addresses import Guard
from edged.egress.destinations import Place
from edged.egress.interfaces import own_addresses
from edged.egress.names import Names
from edged.egress.policy import Asker, Policy
from edged.egress.wishes import Target, target_of_authority
from edged.errors import BadRequest, ConfigError, EdgeError
from services.egress.ledger import GROUPS, last_facts, store_of, usage
from services.egress.netd import messages
from services.egress.netd.client import NetdClient

CONFIG = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=configuration.DEFAULT_FILE,
    show_default=True,
)


@click.group()
def egress() -> None:
    """The gate through which compute nodes reach out."""


@egress.command()
@CONFIG
@click.option("--from", "source", required=True, help="The node's address.")
@click.option("--to", required=True, help="host:port, [v6]:port or address:port.")
@click.option("--job", default="", help="A job id; what the gate last knew of it fills the words below.")
@click.option("--vo", default="")
@click.option("--account", default="")
@click.option("--class", "job_class", default="")
@click.option(
    "--way", type=click.Choice([way.value for way in Way]), default=Way.PROXY.value, show_default=True
)
def explain(config_file: Path, source: str, to: str, way: str, **who: str) -> None:
    """Which rule answers a connection, and why. Exits 0 when it may pass, 1 when not."""
    config, settings = _load(config_file)
    guard = Guard(deny=settings.deny, inside=settings.inside, own=own_addresses())
    policy = Policy(settings, guard)
    asker = _asker(policy, config, source, who)
    try:
        target = target_of_authority(to)
    except BadRequest as error:
        raise click.UsageError(f"--to {to}: {error.message}") from None
    moment = datetime.now().astimezone()
    passes = False
    for place in _places(settings, target):
        click.echo(f"{target} is {place.address}")
        for line in policy.trace(asker, Way(way), place, moment):
            click.echo(f"  {line}")
        decision = policy.decide(asker, Way(way), place, moment)
        click.echo(f"  {'may pass' if decision.allowed else 'refused'}: {decision.reason}")
        passes = passes or decision.allowed
    sys.exit(0 if passes else 1)


@egress.command("usage")
@CONFIG
@click.option("--by", default="vo,destination", show_default=True, help=f"Any of {', '.join(GROUPS)}.")
@click.option("--hours", default=24, show_default=True, help="Back from now.")
@click.option("--json", "as_json", is_flag=True)
def show_usage(config_file: Path, by: str, hours: int, as_json: bool) -> None:
    """Bytes both ways, connections and refusals, as the ledger has them."""
    config, _ = _load(config_file)
    words = tuple(by.split(","))
    unknown = [word for word in words if word not in GROUPS]
    if unknown:
        raise click.UsageError(f"--by: unknown {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    now = time.time()
    with store_of(config).engine.connect() as connection:
        lines = usage(connection, now - hours * 3600, now + 1, words)
    if as_json:
        click.echo(msgspec.json.encode(lines).decode())
        return
    for line in lines:
        refused = ", ".join(f"{count} {outcome}" for outcome, count in sorted(line.refused.items()))
        click.echo(
            "  ".join(f"{word}={value or '-'}" for word, value in line.group.items())
            + f"  out={line.bytes_out}  in={line.bytes_in}  connections={line.connections}"
            + (f"  observed={line.observed}" if line.observed else "")
            + (f"  refused: {refused}" if refused else "")
        )


@egress.group()
def nat() -> None:
    """The packet filter's part, kept by netd."""


@nat.command()
@CONFIG
def plan(config_file: Path) -> None:
    """What `apply` would change, as nft commands; nothing is changed."""
    _netd(config_file, messages.Plan(), otherwise="nothing to change")


@nat.command()
@CONFIG
def apply(config_file: Path) -> None:
    """Let netd read its configuration and make it so, in one transaction."""
    _netd(config_file, messages.Apply(), otherwise="nothing to change")


@nat.command()
@CONFIG
def show(config_file: Path) -> None:
    """The running table, counters included."""
    _netd(config_file, messages.Show())


@nat.command()
@CONFIG
@click.option(
    "--remove", is_flag=True, help="Take the table away: what else forwards is then up to the machine."
)
def off(config_file: Path, remove: bool) -> None:
    """Refuse everything from inside and cut what is open, until `apply`."""
    _netd(config_file, messages.Off(remove=remove))


@nat.command()
@CONFIG
@click.argument("address")
@click.option("--for", "for_s", default=3600, show_default=True, help="Seconds.")
def withdraw(config_file: Path, address: str, for_s: int) -> None:
    """Nothing to or from ADDRESS for a while; its flows are cut."""
    _netd(config_file, messages.Withdraw(address, for_s))


def _netd(file: Path, message: messages.FromAdmin, otherwise: str = "") -> None:
    config, _ = _load(file)
    try:
        parts = NetdClient(config.runtime.run / messages.SOCKET).request(message)
    except EdgeError as error:
        raise click.ClickException(str(error)) from None
    text = "".join(part.text for part in parts if isinstance(part, messages.Text))
    click.echo(text or otherwise, nl=not text.endswith("\n"))


def _load(file: Path) -> tuple[Config, Egress]:
    try:
        config = configuration.load(file)
    except ConfigError as error:
        raise click.ClickException("\n".join(error.problems)) from None
    if config.egress is None:
        raise click.ClickException(f"{file} has no [egress] section")
    return config, config.egress


def _asker(policy: Policy, config: Config, source: str, who: dict[str, str]) -> Asker:
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        raise click.UsageError(f"--from {source}: not an address") from None
    known = policy.source_of(address)
    if known is None:
        click.echo(f"{source} is in no [[egress.source]]: refused at accept")
        sys.exit(1)
    asker = policy.by_address(known, address)
    facts = _facts(config, who["job"]) if who["job"] else {}
    words = {
        word: who.get(word) or facts.get(word) or getattr(asker, word)
        for word in ("job", "vo", "account", "job_class")
    }
    asker = Asker(asker.source, asker.address, **words)
    click.echo(f"asker: {json.dumps(msgspec.to_builtins(asker))}")
    if known.require_token and not asker.job:
        click.echo("source requires a job token: the proxy answers 407")
    return asker


def _facts(config: Config, job: str) -> dict[str, str]:
    try:
        with store_of(config).engine.connect() as connection:
            return last_facts(connection, job)
    except Exception as error:  # no database yet is no reason not to explain
        click.echo(f"(the ledger cannot be read: {error.__class__.__name__})", err=True)
        return {}


def _places(settings: Egress, target: Target) -> list[Place]:
    if target.address is not None:
        return [Place("", target.address, target.port)]

    async def resolve() -> list[Place]:
        found = await Names(settings.resolvers, timeout_s=settings.limits.resolve_s).resolve(target.host)
        return [Place(target.host, address, target.port) for address in found.addresses]

    try:
        return asyncio.run(resolve())
    except EdgeError as error:
        click.echo(f"{target.host}: {error.message}")
        sys.exit(1)
