"""``edged xrootd``: what the servers are told, running one under systemd, and what clients are told."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from edged import config as configuration
from edged import systemd
from edged.cli import CONFIG
from edged.config import Config
from edged.errors import BadRequest, ConfigError, EdgeError
from services.storage.xrootd import building, installation, planning, render
from services.storage.xrootd.installation import Installation
from services.storage.xrootd.plan import Instance, Plan
from services.storage.xrootd.servers import Prepared


@click.group()
def xrootd() -> None:
    """The root:// view: the real xrootd, configured by edged."""


@xrootd.command("render")
@CONFIG
@click.option(
    "--to", "directory", type=click.Path(path_type=Path, file_okay=False), help="Write files below here."
)
def show(config_file: Path, directory: Path | None) -> None:
    """Print every configuration that edged would write, or write copies below a directory to compare."""
    config, plan, installed = _plan(config_file)
    for label, why in plan.refused.items():
        click.echo(f"{label}: not shown: {why}", err=True)
    for instance in plan.instances:
        report = f"127.0.0.1:{plan.settings.report_port}"
        for name, content in render.files(config, plan, instance, installed, report=report).items():
            if directory is None:
                click.echo(f"#### {instance.directory}/{name}\n{content}")
            else:
                target = directory / instance.name / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(content)
    sys.exit(1 if plan.refused else 0)


@xrootd.command("list")
@CONFIG
@click.option("--stale", is_flag=True, help="Only the units that run with another configuration than now.")
def list_instances(config_file: Path, stale: bool) -> None:
    """The instances: name, account, port, programs. Their units are edged-xrootd@NAME and edged-cmsd@NAME."""
    config, plan, installed = _plan(config_file)
    if stale:
        for one in plan.instances:
            for program in _stale(config, plan, one, installed):
                click.echo(f"edged-{program}@{one.name}.service")
        return
    for one in plan.instances:
        shown = ",".join(export.prefix for export in one.exports) or "-"
        click.echo(f"{one.name}  {one.role}  {one.account}  {one.port}  {'+'.join(one.programs)}  {shown}")


@xrootd.command("exec")
@CONFIG
@click.argument("name")
@click.option("--cmsd", is_flag=True, help="The instance's cmsd instead of its xrootd.")
def execute(config_file: Path, name: str, cmsd: bool) -> None:
    """Become the server of instance NAME; for systemd, as the instance's account (or as root)."""
    config, plan, installed = _plan(config_file)
    instance = _instance(plan, name)
    program = "cmsd" if cmsd else "xrootd"
    if program not in instance.programs:
        raise BadRequest(f"{name} needs no {program}")
    prepared = Prepared(config, plan, instance, installed)
    if not cmsd or not (instance.directory / render.STAMP).exists():
        prepared.write()  # the pair shares a directory: its xrootd writes it
    prepared.started(program)
    argv = prepared.argv(program)
    prepared.become_it(watched=False)
    os.chdir(instance.directory / render.ADMIN)  # the server makes a directory of its name where it starts
    systemd.notify("READY=1")  # what is in the directory stands: the cmsd may read it
    os.execvpe(argv[0], argv, prepared.environment())  # noqa: S606 - a fixed program, no shell


@xrootd.command("client-config")
@CONFIG
@click.option("--shell", "form", flag_value="shell", default=True, help="Variables for a job's environment.")
@click.option(
    "--plugin", "form", flag_value="plugin", help="A file for the nodes' /etc/xrootd/client.plugins.d."
)
def client_config(config_file: Path, form: str) -> None:
    """How nodes reach remote files: through the forwarding proxy of [storage.xrootd.proxy]."""
    config = configuration.load(config_file)
    plan = planning.of(config, multiuser=False)
    if plan.settings.proxy is None:
        raise ConfigError(["storage.xrootd.proxy: no such section"])
    host = (config.egress.host if config.egress else "") or plan.host
    proxy = f"{host}:{plan.settings.proxy.port}"
    if form == "plugin":
        click.echo("url = *\nlib = libXrdClProxyPlugin-5.so\nenable = true\n# and in the environment: "
                   f"XROOT_PROXY=root://{proxy}//")  # fmt: skip
        return
    click.echo("export XRD_PLUGIN=libXrdClProxyPlugin-5.so")
    click.echo("export XRD_CPUSEPGWRTRD=0")  # the plugin of 5.5 has no page reads
    click.echo(f"export XROOT_PROXY=root://{proxy}//")
    click.echo(f"export XROOT_PROXY_EXCL_DOMAINS={host},localhost")  # local files are file://localhost to it


@xrootd.command("build")
@CONFIG
@click.option(
    "--if-needed", is_flag=True, help="Only when this edged or the server is another than it was built for."
)
def build(config_file: Path, if_needed: bool) -> None:
    """Compile edged's gate for the server installed here. Run it as root, and after upgrades of xrootd."""
    config = configuration.load(config_file)
    settings = config.storage.xrootd if config.storage else None
    if settings is None:
        raise ConfigError(["storage.xrootd: no such section"])
    server = settings.bin / "xrootd"
    if if_needed and building.current(settings.gate, installation.shown(installation.ask_version(server))):
        click.echo(f"{settings.gate}: as it should be")
        return
    version = building.build(settings.gate, server)
    click.echo(f"{settings.gate}: built for xrootd {version}")


def _stale(config: Config, plan: Plan, one: Instance, installed: Installation) -> Sequence[str]:
    try:
        return Prepared(config, plan, one, installed).stale()
    except EdgeError as error:  # its own start says it too; the others are not held up
        click.echo(f"{one.name}: {error}", err=True)
        return one.programs


def _plan(config_file: Path) -> tuple[Config, Plan, Installation]:
    config = configuration.load(config_file)
    plan, installed = planning.make(config)
    return config, plan, installed


def _instance(plan: Plan, name: str) -> Instance:
    found = plan.named(name)
    if found is None:
        there = ", ".join(one.name for one in plan.instances) or "none"
        raise BadRequest(f"no instance {name!r}; there are: {there}")
    return found
