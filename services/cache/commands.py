"""``edged cache …``: what an administrator asks of the cache."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import click

from edged import config as configuration
from edged.cli import CONFIG
from edged.config import Config
from edged.config.cache import Cache
from edged.errors import NotFound, Unavailable
from services.cache import eviction
from services.cache.names import ObjectName
from services.cache.store import Store
from services.cache.warm import AlienCache, Progress, Warmer


@click.group()
def cache() -> None:
    """The CVMFS and HTTP cache."""


@cache.command()
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def stat(config_file: Path, as_json: bool) -> None:
    """Show what the running cache did: requests, hits, bytes, repositories, upstreams."""
    config, section = _section(config_file)
    pages = asyncio.run(_ask(config, "GET", "/summary"))
    if not pages:
        raise Unavailable("no cache is running here", detail=str(_admin_directory(config, section)))
    if as_json:
        click.echo(json.dumps(pages if len(pages) > 1 else pages[0], indent=2))
        return
    for number, page in enumerate(pages):
        _show(page, f"worker {number}" if len(pages) > 1 else "")


@cache.command()
@CONFIG
@click.option("--object", "name", metavar="HASH", help="One object, e.g. 40 hex digits.")
@click.option("--repository", help="A repository's manifest and whitelist, and its newest revision seen.")
@click.option("--all", "everything", is_flag=True, help="Everything.")
def purge(config_file: Path, name: str | None, repository: str | None, everything: bool) -> None:
    """Forget something, in the running processes and on disk."""
    config, section = _section(config_file)
    if sum(map(bool, (name, repository, everything))) != 1:
        raise click.UsageError("one of --object, --repository and --all")
    store = Store(section.store)
    freed = 0
    if name:
        try:
            wanted = ObjectName.parse(name.replace("/", ""))
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        asyncio.run(_ask(config, "POST", f"/forget?object={wanted.key}"))
        freed = store.remove(wanted)
    elif repository:
        asyncio.run(_ask(config, "POST", f"/forget?repository={repository}"))
        for path in (store.repositories / Path(repository).name).glob("*"):
            path.unlink(missing_ok=True)
    else:
        asyncio.run(_ask(config, "POST", "/forget"))
        freed = sum(store.remove_file(path) for path in store.files())
    click.echo(f"{freed} bytes freed")


@cache.command()
@CONFIG
def verify(config_file: Path) -> None:
    """Hash every stored object; damaged ones are removed. Exit status 1 when there were any."""
    _, section = _section(config_file)
    store = Store(section.store)
    good = damaged = 0
    for name in store.names():
        if store.verify(name):
            good += 1
        else:
            damaged += 1
            click.echo(f"removed: {name.key}")
    files, held = eviction.count(store)
    click.echo(f"{good} good, {damaged} damaged; {files} files, {held} bytes")
    sys.exit(1 if damaged else 0)


@cache.command()
@CONFIG
@click.argument("repository")
@click.option("--path", default="/", show_default=True, help="Only what lies below this directory.")
@click.option(
    "--list", "listing", type=click.File("r"), help="Fetch these objects (data/xx/…, one a line) instead."
)
@click.option("--parallel", default=16, show_default=True, type=click.IntRange(1, 64))
@click.option(
    "--alien", type=click.Path(path_type=Path, file_okay=False), help="Fill this CVMFS alien cache."
)
@click.option("--url", default="", help="The cache to ask; default: the first address it listens on.")
def warm(  # noqa: PLR0917 - click gives them by name
    config_file: Path, repository: str, path: str, listing: Any, parallel: int, alien: Path | None, url: str
) -> None:
    """Fetch REPOSITORY's tree ahead of the jobs, catalog by catalog."""
    if not url:
        _, section = _section(config_file)
        url = f"http://{_reachable(section.listen[0])}"
    store = AlienCache(alien) if alien else None
    warmer = Warmer(url, repository, parallel=parallel, alien=store, tell=_tell)
    done = asyncio.run(warmer.paths(listing) if listing else warmer.tree(path))
    click.echo(f"\r{_words(done)}", err=False)
    sys.exit(1 if done.failed else 0)


@cache.command("client-config")
@CONFIG
@click.option(
    "--address", help="Address of this machine as nodes see it; default: the addresses it listens on."
)
@click.option("--others", default="", help="Further caches, host:port comma-separated, to balance over.")
def client_config(config_file: Path, address: str | None, others: str) -> None:
    """Print the CVMFS client settings that make nodes use this cache."""
    _, section = _section(config_file)
    mine = [address] if address else [_reachable(listen) for listen in section.listen]
    every = [*mine, *(other for other in others.split(",") if other)]
    click.echo(f'CVMFS_HTTP_PROXY="{"|".join(f"http://{one}" for one in every)}"')
    for repository in section.repositories:
        servers = ";".join(f"{base}/cvmfs/@fqrn@" for base in repository.stratums)
        click.echo(f'# {repository.name}\n# CVMFS_SERVER_URL="{servers}"\n# CVMFS_USE_GEOAPI=no')


def _section(config_file: Path) -> tuple[Config, Cache]:
    config = configuration.load(config_file)
    if config.cache is None:
        raise NotFound("the configuration has no [cache]")
    return config, config.cache


def _admin_directory(config: Config, section: Cache) -> Path:
    return section.admin or config.runtime.run / "cache"


async def _ask(config: Config, method: str, path: str) -> list[Any]:
    """The answers of every process of the running cache; empty when none runs."""
    assert config.cache is not None
    found = []
    for path_of_socket in sorted(_admin_directory(config, config.cache).glob("*.sock")):
        connector = aiohttp.UnixConnector(str(path_of_socket))
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            try:
                async with session.request(method, f"http://cache{path}") as answer:
                    found.append(await answer.json() if answer.status == 200 else None)
            except aiohttp.ClientConnectionError:  # a socket of a process that was killed
                continue
    return found


def _show(page: dict[str, Any], title: str) -> None:
    if title:
        click.echo(title)
    requests = ", ".join(f"{count} {outcome}" for outcome, count in page["requests"].items() if count)
    click.echo(f"requests      {requests or 'none'}")
    click.echo(f"hit ratio     {page['hit_ratio']:.1%} of requests, {page['byte_hit_ratio']:.1%} of bytes")
    click.echo(f"bytes         {page['client_bytes']} to clients, {page['upstream_bytes']} from upstreams")
    click.echo(
        f"store         {page['disk_bytes']} of {page['disk_limit']} bytes, {page['objects']} files at start"
    )
    for name, known in page["repositories"].items():
        click.echo(f"{name}: revision {known['revision']}, manifest {known['manifest_age_s']} s old")
    for base, figures in page["upstreams"].items():
        words = ", ".join(f"{value} {name}" for name, value in figures.items() if name != "resting")
        click.echo(f"{base}: {words}{', resting' if figures['resting'] else ''}")


def _reachable(listen: str) -> str:
    """An address one can connect to: a wildcard becomes the loopback."""
    host, _, port = listen.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("0.0.0.0", "[::]") else listen  # noqa: S104


def _tell(progress: Progress) -> None:
    if sys.stderr.isatty() and progress.objects % 50 == 0:
        click.echo(f"\r{_words(progress)}", nl=False, err=True)


def _words(progress: Progress) -> str:
    return (
        f"{progress.catalogs} catalogs, {progress.objects} objects, {progress.bytes} bytes fetched, "
        f"{progress.known} known before, {progress.failed} failed"
    )
