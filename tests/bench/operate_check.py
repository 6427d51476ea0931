"""How long `edged check` takes with 500 mappings: `python -m tests.bench.operate_check [ROUNDS]`.

Bar: 0.5 s. The peer beside it is what any Python program with the same libraries pays before it begins:
an interpreter that imports pydantic and click.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAPPINGS = 500


def configuration() -> str:
    """A site with many groups."""
    parts = ['[site]\nname = "BENCH"\n[jobs]\nlisten = ["0.0.0.0:8444"]\n']
    parts.append(
        '[[issuer]]\nurl = "https://issuer.example.org/"\naudience = ["https://edge.example.org"]\nvo = "cms"\n'
    )
    parts += [
        f'[[mapping]]\nissuer = "https://issuer.example.org/"\ngroups = ["/cms/group{number}"]\n'
        f'account = "acc{number}"\nclass = "pilot"\n'
        for number in range(MAPPINGS)
    ]
    return "".join(parts)


def timed(command: list[str]) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of one run."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print both, their ratio, and the bar."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "edged.toml"
        file.write_text(configuration())
        ours, bare = [], []
        for _ in range(rounds):  # in turns: the machine's other load meets both
            ours.append(timed([sys.executable, "-m", "edged", "check", str(file)]))
            bare.append(timed([sys.executable, "-c", "import click, pydantic"]))
    wall, cpu = (statistics.median(found) for found in zip(*ours, strict=True))
    bare_wall, bare_cpu = (statistics.median(found) for found in zip(*bare, strict=True))
    print(
        f"edged check, {MAPPINGS} mappings: {wall:.2f} s wall, {cpu:.2f} s CPU (bar 0.50 s); best {min(ours)[0]:.2f} s"
    )
    print(f"interpreter with click and pydantic: {bare_wall:.2f} s wall, {bare_cpu:.2f} s CPU")
    print(f"ratio: wall {wall / bare_wall:.1f}, CPU {cpu / bare_cpu:.1f}")


if __name__ == "__main__":
    main()
