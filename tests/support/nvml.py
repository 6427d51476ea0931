"""Builds the library that stands for NVML (``nvml.c``)."""

from __future__ import annotations

import subprocess
from pathlib import Path


def library(directory: Path) -> Path:
    """Compiled into ``directory``, readable by every account."""
    built = directory / "libnvidia-ml.so.1"
    source = Path(__file__).with_suffix(".c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(built), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    built.chmod(0o755)
    return built
