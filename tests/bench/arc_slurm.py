"""How soon an ARC client sees FINISHED after Slurm ended the job; the bar is 5 s.

    python -m tests.bench.arc_slurm [--jobs 10]

A real Slurm, the default sweep period of 3 s, polling four times a second. Slurm's own End time has whole
seconds, so each figure may be up to a second too large.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from tests.real.doors.arc.fixtures import ALICE, ArcSite, Rest, arc_sections, grid_of, with_tls
from tests.real.jobs.fixtures import slurm_settings
from tests.support.site import Site
from tests.support.slurm import SlurmTestbed


async def delay_s(rest: Rest, number: int) -> float:
    """From the payload's last act to the first poll that shows the end."""
    (made,) = await rest.submit(
        f'&(executable="/bin/sh")(arguments="-c" "sleep {number % 4}; date +%s.%N")(stdout="o")'
    )
    while await rest.state(made["id"]) != "FINISHED":
        await asyncio.sleep(0.25)
    seen = time.time()
    return seen - float(await rest.call("GET", f"/jobs/{made['id']}/session/o"))


async def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--jobs", type=int, default=10)
    given = options.parse_args()
    with SlurmTestbed() as slurm, tempfile.TemporaryDirectory(prefix="edged-arc-bench-") as root:
        site = Site(Path(root))
        grid, alice = grid_of(site)
        extra = arc_sections(site.root, {ALICE: "cmsprd"})
        settings = slurm_settings(Path(root), slurm, site.issuer.url, arc=extra["arc"], poll_s=3.0)
        site.sections.update(settings, identity=extra["identity"], tls=with_tls(site, grid))
        async with site.running():
            arc = await ArcSite(site, grid, alice).ready()
            async with arc.http() as rest:
                found = [await delay_s(rest, number) for number in range(given.jobs)]
    print(
        f"{given.jobs} jobs: FINISHED seen after {statistics.median(found):.1f} s (median), {max(found):.1f} s (most)"
    )


if __name__ == "__main__":
    asyncio.run(main())
