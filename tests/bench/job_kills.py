"""kill -9 at many random points, on a real Slurm: ``python -m tests.bench.job_kills [POINTS] [SEED]``."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.real.jobs.fixtures import slurm_settings
from tests.support.killing import Killing
from tests.support.site import Site
from tests.support.slurm import SlurmTestbed


async def main(points: int, seed: int) -> None:
    """Print what was lost and doubled."""
    with tempfile.TemporaryDirectory(prefix="edged-kill-") as root, SlurmTestbed() as slurm:
        site = Site(Path(root))
        site.sections.update(slurm_settings(Path(root), slurm, site.issuer.url, stuck_s=600))
        async with site.running():
            found = await Killing(site, seed=seed, points=points, per_point=4).run()
    print(f"kills {points} {dict(found.killed)} seed {seed}")
    print(f"acknowledged {found.acknowledged} finished {found.finished}")
    print(f"lost {len(found.lost)} doubled {len(found.doubled)}")


if __name__ == "__main__":
    asyncio.run(main(*(int(a) for a in (sys.argv[1:] + ["500", "1"][len(sys.argv) - 1 :])[:2])))
