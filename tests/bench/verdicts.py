"""Token verdicts: CPU of a first sight (front, signer and fetcher counted) and of a remembered one.

    python -m tests.bench.verdicts [--tokens N] [--undisturbed]

The signer and the fetcher run in a process of their own, as under systemd; the front is this one.
Beside us in the same run: PyJWT's own ``jwt.decode`` with the key in hand, which is what a service does that
checks tokens by itself, without mapping, bans, grants, audit or another process; and the floor: OpenSSL's
check of the token's signature and making of the grant's.
Bars: remembered at most 5 µs, first sight at most 200 µs of all processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import jwt
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.utils import base64url_decode

from edged import lifecycle, logs
from edged.config import Config, load
from edged.identity.client import IdentityClient
from edged.identity.testca import ThrowAwayCa
from edged.identity.testissuer import AUDIENCE, Algorithm, ThrowAwayIssuer
from edged.identity.words import ServiceName
from edged.services import Context
from services.identity.service import issuers, signer
from tests.support.cpu import undisturbed

GROUPS = ("/cms", "/cms/production", "/cms/uscms", "/cms/itcms", "/cms/escms")
REMEMBERED = 200_000
TICKS = os.sysconf("SC_CLK_TCK")


def configuration(directory: Path, issuer: ThrowAwayIssuer) -> Path:
    """A site that knows the issuer by a local key file."""
    jwks = directory / "jwks.json"
    jwks.write_text(json.dumps(issuer.jwks()))
    file = directory / "edged.toml"
    file.write_text(
        f"""
[site]
name = "BENCH"
[runtime]
state = "{directory}/state"
run = "{directory}/run"
[[issuer]]
url = "{issuer.url}"
audience = ["{AUDIENCE}"]
vo = "cms"
jwks_file = "{jwks}"
[[mapping]]
issuer = "{issuer.url}"
groups = ["/cms/production"]
account = "cmsprd"
[[storage.export]]
prefix = "/cms"
root = "/srv"
vo = "cms"
"""
    )
    return file


async def serve(config: Config) -> None:
    """The process beside: signer and fetcher."""
    context = Context()
    services = [*issuers(config, context), *signer(config, context)]
    await lifecycle.run(services, health=lifecycle.Health())


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far, from /proc (proc_pid_stat(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def measure(config: Config, issuer: ThrowAwayIssuer, other: int, count: int) -> dict[str, float]:
    """CPU microseconds per unit."""
    client = IdentityClient(config, ServiceName("storage"))
    scope = "openid storage.read:/store storage.modify:/store/user/alice"
    tokens = [issuer.token(groups=GROUPS, scope=scope) for _ in range(count)]
    async with asyncio.TaskGroup() as tasks, client.running(tasks):
        for token in (issuer.token(groups=GROUPS, scope=scope) for _ in range(200)):
            await ready(client, token)
        here, there = time.process_time(), cpu_of(other)
        await asyncio.gather(*(requests(client, tokens[start::8]) for start in range(8)))
        front, signing = time.process_time() - here, cpu_of(other) - there
        here = time.process_time()
        token = tokens[-1]
        for _ in range(REMEMBERED):
            await client.verdict(token)
        remembered = time.process_time() - here
    key, algorithm = issuer.keys[0].private.public_key(), issuer.keys[0].algorithm
    checker = jwt.algorithms.get_default_algorithms()[algorithm]
    here = time.process_time()
    for token in tokens:
        jwt.decode(token, key, algorithms=[algorithm], audience=AUDIENCE)
    peer = time.process_time() - here
    here = time.process_time()
    signer_key, payload = Ed25519PrivateKey.generate(), bytes(700)
    for token in tokens:
        signed, _, signature = token.rpartition(".")
        checker.verify(signed.encode(), key, base64url_decode(signature))
        signer_key.sign(payload)
    floor = time.process_time() - here
    return {
        "first sight": (front + signing) / count * 1e6,
        "of it front": front / count * 1e6,
        "of it signer": signing / count * 1e6,
        "two signatures alone": floor / count * 1e6,
        "jwt.decode alone": peer / count * 1e6,
        "remembered": remembered / REMEMBERED * 1e6,
    }


async def requests(client: IdentityClient, tokens: list[str]) -> None:
    """One of the requests a busy front has under way."""
    for token in tokens:
        await client.verdict(token)


async def ready(client: IdentityClient, token: str) -> None:
    """One verdict, however long the other process takes to start."""
    from edged.errors import Unavailable

    end = time.monotonic() + 20
    while True:
        try:
            await client.verdict(token)
            return
        except Unavailable:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.05)


async def run(algorithm: Algorithm, count: int) -> None:
    """One algorithm, printed."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        issuer = ThrowAwayIssuer(ThrowAwayCa(directory), algorithm=algorithm)
        file = configuration(directory, issuer)
        words = (sys.executable, "-m", "tests.bench.verdicts", "--serve", str(file))
        beside = await asyncio.create_subprocess_exec(*words)
        try:
            found = await measure(load(file), issuer, beside.pid, count)
        finally:
            beside.terminate()
            await beside.wait()
    ratio = found["first sight"] / found["jwt.decode alone"]
    print(f"{algorithm}: " + ", ".join(f"{name} {value:.1f} µs" for name, value in found.items()))
    print(f"{algorithm}: first sight / jwt.decode alone = {ratio:.2f}; bars: 200 µs and 5 µs remembered")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--undisturbed", action="store_true", help="before all other work on the machine")
    options = parser.parse_args()
    if options.undisturbed:
        undisturbed()
    if options.serve is not None:
        with Path(os.devnull).open("w") as nowhere:  # audit lines are made and written, as by default
            logs.setup(stream=nowhere)
            uvloop.run(serve(load(options.serve)))
        return
    logging.disable(logging.INFO)
    for algorithm in ("RS256", "ES256"):
        uvloop.run(run(algorithm, options.tokens))


if __name__ == "__main__":
    main()
