"""How busy a job's GPUs were: the sampler beside the payload, else what the batch system measured.

What nobody measured stays unknown. The sampler's file lies in the job's own session directory, so a job could
write what it likes there: figures are kept within what it was given, and decide nothing.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from importlib import resources

import msgspec

from edged.config.jobs import GpuSampler
from services.jobs.batch.script import PRIVATE, Beside

PROGRAM = PRIVATE / "gpu_sampler.py"
RESULT = PRIVATE / "gpus"
MAX_RESULT = 4096


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Seconds of one GPU: for how many it was observed, and in how many of them it worked."""

    measured_s: float
    used_s: float


class _Sampled(msgspec.Struct):
    gpus: int
    seconds: float
    busy: float


def sampler(settings: GpuSampler) -> Beside | None:
    """What runs beside the payload of a job with GPUs; None: the site wants none."""
    if not settings.library:
        return None
    words = (settings.python, str(PROGRAM), settings.library, str(settings.period_s), str(RESULT))
    code = resources.files("services.jobs").joinpath("node/gpu_sampler.py").read_bytes()
    return Beside(shlex.join(words), {str(PROGRAM): (code, 0o600)})


def sampled(content: bytes, allocated_s: float) -> GpuUse | None:
    """What the sampler wrote, of a job that was given ``allocated_s``; None when it is no such file."""
    try:
        told = msgspec.json.decode(content[:MAX_RESULT], type=_Sampled)
        observed = told.gpus * told.seconds
    except (msgspec.MsgspecError, OverflowError):  # an integer may be longer than any float
        return None
    if not (math.isfinite(observed) and math.isfinite(told.busy)) or observed <= 0 or told.busy < 0:
        return None
    return _within(observed, told.busy, allocated_s)


def by_batch_system(busy_s: float | None, allocated_s: float) -> GpuUse | None:
    """What the batch system measured over the whole job."""
    return None if busy_s is None else _within(allocated_s, busy_s, allocated_s)


def _within(measured_s: float, used_s: float, allocated_s: float) -> GpuUse:
    measured_s = min(measured_s, allocated_s)
    return GpuUse(measured_s, min(used_s, measured_s))
