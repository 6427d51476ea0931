"""``edged ssh login`` for people, ``edged ssh-ca`` for the site."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from edged import config as configuration
from edged import sshca
from edged.cli import CONFIG
from edged.client import connected
from edged.errors import Unavailable
from services.identity.commands import ask, me
from services.identity.sealing import SSH_PUBLIC


@click.group()
def ssh() -> None:
    """SSH with a token: a short certificate for the account it maps to."""


@ssh.command()
@click.option("--url", envvar="EDGED_IDENTITY_URL", required=True, help="The site's identity API.")
@click.option(
    "--ca-file", type=click.Path(path_type=Path, exists=True), help="CA of the site, if not a public one."
)
@click.option(
    "--hours", type=click.FloatRange(min=0, min_open=True), help="Life wanted; the site has a limit."
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("~/.ssh/edged").expanduser,
    help="Where key and certificate go.  [default: ~/.ssh/edged]",
)
@click.option("--host", default="", help="Also print the command that logs in there.")
def login(url: str, ca_file: Path | None, hours: float | None, directory: Path, host: str) -> None:
    """Make a key, and have it certified by the token of BEARER_TOKEN_FILE (or as WLCG discovery finds it).

    A new key each time: it is worth nothing without its certificate, which ends by itself.
    """
    key = Ed25519PrivateKey.generate()
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    made = asyncio.run(_certified(url, ca_file, line, hours))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = directory / f"{made['account']}-{_site(url)}"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    _replace(file, private, 0o600)
    _replace(file.with_name(file.name + "-cert.pub"), made["certificate"].encode() + b"\n", 0o644)
    _replace(file.with_name(file.name + ".pub"), line.encode() + b"\n", 0o644)
    click.echo(
        f"certificate {made['serial']} for account {made['account']}, until {made['expires_at']}: {file}"
    )
    click.echo(f"ssh -i {file} -o IdentitiesOnly=yes {made['account']}@{host or 'LOGIN-NODE'}")


async def _certified(url: str, ca_file: Path | None, line: str, hours: float | None) -> Any:
    body: dict[str, Any] = {"public_key": line}
    if hours is not None:
        body["life_s"] = hours * 3600
    async with connected(url, ca_file) as api:
        return await api.call("POST", "/v1/ssh/certificate", body=body)


def _site(url: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in url.partition("//")[2])


def _replace(file: Path, content: bytes, mode: int) -> None:
    """Whole or not at all; never readable by others in between."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
        out.write(content)
    temporary.rename(file)


@click.group("ssh-ca")
def ssh_ca() -> None:
    """edged's own SSH certificate authority."""


@ssh_ca.command()
@CONFIG
def show(config_file: Path) -> None:
    """The CA's public key and the lines for sshd_config on login nodes."""
    config = configuration.load(config_file)
    file = config.runtime.state / "identity" / SSH_PUBLIC
    try:
        line = file.read_text()
    except OSError as error:
        raise Unavailable("no SSH CA yet: identity makes it at its first start", detail=str(error)) from error
    click.echo("# /etc/ssh/edged-ca.pub\n" + line)
    commands = [
        getattr(cluster, "force_command", "") for cluster in (config.jobs.clusters if config.jobs else ())
    ]
    click.echo(
        "# sshd_config\n" + sshca.sshd_lines(config.site.name, next(filter(None, commands), "")), nl=False
    )


@ssh_ca.command()
@CONFIG
@click.argument("serial", type=click.IntRange(min=1))
def revoke(config_file: Path, serial: int) -> None:
    """Put the certificate with SERIAL (from sshd's log or the audit) on the revocation list."""
    ask(configuration.load(config_file), lambda identity: identity.revoke_certificate(serial, me()))
    click.echo(f"{serial}: revoked; sshd knows when it has fetched the list")


@ssh_ca.command()
@CONFIG
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File for RevokedKeys."
)
def krl(config_file: Path, output: Path) -> None:
    """Write the revocation list, for sites that copy it to login nodes by their own means."""
    found = ask(configuration.load(config_file), lambda identity: identity.revocations())
    _replace(output, found.krl, 0o644)
