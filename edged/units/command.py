"""``edged units``: for Ansible and for people."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edged.cli import CONFIG


@click.command()
@CONFIG
@click.option(
    "--root", type=click.Path(path_type=Path, file_okay=False), default=Path("/"), show_default=True
)
@click.option("--prefix", default="/opt/edged/current", show_default=True, help="Where edged is installed.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--remove", is_flag=True, help="Take away everything this command ever wrote.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def units(  # noqa: PLR0917 - click passes by name
    config_file: Path, root: Path, prefix: str, dry_run: bool, remove: bool, as_json: bool
) -> None:
    """Write the systemd units, with the sockets, paths and secrets that the configuration names.

    Afterwards: systemd-sysusers; systemd-tmpfiles --create; systemctl daemon-reload;
    systemctl enable --now edged.target
    """
    from edged import config as configuration
    from edged.units import install, site

    before = install.running_now(root)
    if remove:
        wanted, now = {}, []
    else:
        loaded = configuration.load(config_file)
        wanted, now = install.files(loaded, prefix), site.wanted(loaded)
    found = install.changes(wanted, root)
    if not dry_run:
        install.apply(found)
    dropped = [unit for unit in before if unit not in now]
    diff = "".join(line for change in found for line in change.diff())
    if as_json:
        told = {
            "changed": [str(change.path) for change in found],
            "moved": install.moved(found),
            "altered": install.altered(found, now),
            "wanted": now,
            "dropped": dropped,
            "diff": diff,
        }
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(diff or "nothing to change", nl=not diff)
    for unit in dropped:
        click.echo(f"wanted no more: systemctl stop {unit}")
