"""The ``edged`` command: what runs the daemons, and what people and programs ask them.

Services bring their own commands by the entry point group ``edged.commands``; each is imported only
when it is called, so that ``edged check`` stays fast.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import click

from edged import __version__
from edged.errors import ConfigError, EdgeError

CONFIG = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/edged/edged.toml"),
    envvar="EDGED_CONFIG",
    show_default=True,
    help="The configuration file; conf.d/*.toml beside it is read too.",
)


class Commands(click.Group):
    """Our own commands plus those of the installed services, loaded when used."""

    def _points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group="edged.commands")}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted({*super().list_commands(ctx), *self._points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Our own command, else a service's."""
        own = super().get_command(ctx, cmd_name)
        point = self._points().get(cmd_name)
        if own is not None or point is None:
            return own
        command: click.Command = point.load()
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run; an expected error is one clear line and exit status 1 (2 for the configuration)."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(f"edged: {problem}", err=True)
            sys.exit(2)
        except EdgeError as error:
            click.echo(f"edged: {error}", err=True)
            sys.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edged")
def main() -> None:
    """The edge-service gateway suite: tokens in, local service accounts out."""


@main.command()
@click.argument("services", nargs=-1)
@CONFIG
def run(services: tuple[str, ...], config_file: Path) -> None:
    """Run the daemons: all configured ones, or only the named SERVICES."""
    from edged import run as runner

    sys.exit(runner.main(config_file, services))


@main.command()
@CONFIG
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--replacing",
    type=click.Path(path_type=Path, dir_okay=False),
    help="FILE is to take this file's place: check it among those that stay, as Ansible's validate does.",
)
@click.option(
    "--connect",
    is_flag=True,
    help="Also try what it names elsewhere: login nodes, slurmrestd. Submits nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def check(config_file: Path, file: Path | None, replacing: Path | None, connect: bool, as_json: bool) -> None:
    """Check the configuration: every error with its dotted path, then warnings.

    Exit status 0: it is right; 2: it has errors, and nothing was tried. With --connect also 1: it is right, but
    something that it names does not work, or could not be tried. Logins need the running identity service.
    """
    from edged.check import Checked, checked

    found: Checked = checked(config_file, file, replacing, connect=connect)
    if as_json:
        click.echo(found.as_json())
    else:
        found.tell(str(file or config_file))
    sys.exit(found.status)


@main.group()
def state() -> None:
    """The state databases."""


@state.command()
@CONFIG
@click.option("--only", metavar="NAME", help="Only this database.")
def migrate(config_file: Path, only: str | None) -> None:
    """Bring every database to this version's schema. Run it once after an upgrade, before starting.

    Root does it as the owner of each database, so that the service can open what it finds.
    """
    from edged import config
    from edged.state import upgrade

    for line in upgrade.migrate(config.load(config_file), config_file, only):
        click.echo(line)


@state.command()
@CONFIG
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def backup(config_file: Path, file: Path) -> None:
    """Copy all databases and keys into the archive FILE (tar), consistently, while edged runs.

    The archive has the site's signing keys: keep it as you keep them.
    """
    from edged import config
    from edged.state import backup as backups

    for line in backups.save(config.load(config_file), file):
        click.echo(line)


@state.command()
@CONFIG
@click.option("--replace", is_flag=True, help="Over a state that is there; it is kept beside.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
def restore(config_file: Path, file: Path, replace: bool) -> None:
    """Bring the archive FILE back, edged stopped. Everything in it is checked first."""
    from edged import config
    from edged.state import backup as backups

    for line in backups.restore(config.load(config_file), file, replace=replace):
        click.echo(line)


@main.command()
@click.option("--keep", is_flag=True, help="Stay up afterwards and print URLs, a token and commands to try.")
@click.option("--batch", default="local", show_default=True, help="Batch system: local or slurm.")
def demo(keep: bool, batch: str) -> None:
    """Start everything on embedded defaults and walk the main job with real requests."""
    from edged.demo import run as walk

    sys.exit(walk(keep=keep, batch=batch))


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL; source it or put it where the shell looks."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"no completion for {shell}")
    click.echo(kind(main, {}, "edged", "_EDGED_COMPLETE").source())


@main.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def man(directory: Path) -> None:
    """Write the man pages of all commands into DIRECTORY, e.g. /usr/local/share/man/man1."""
    from edged import manual

    for file in manual.write(main, directory):
        click.echo(file)
