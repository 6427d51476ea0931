"""Tells how busy a job's GPUs were, through NVML: runs on the node beside the payload, as the job's account.

    python3 gpu_sampler.py LIBRARY PERIOD_S RESULT

Writes RESULT after each sample: {"gpus": 2, "seconds": 60.0, "busy": 88.4, "samples": 12}, where ``busy`` counts
seconds of one whole GPU at work. No library, no GPU of ours, or a GPU that does not tell (MIG): no RESULT.
For Python 3.6 and nothing but its standard library, as nodes have it.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, List

PERCENT = 100.0


class Utilization(ctypes.Structure):
    """nvmlUtilization_t: percent of the last sample period (1/6 s to 1 s) in which a kernel ran."""

    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class Nvml:
    """The few calls needed. A call that fails raises OSError with its number (nvmlReturn_t)."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._call("nvmlInit_v2")

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise OSError(code, name)

    def by_index(self) -> List[ctypes.c_void_p]:
        """All GPUs this process may use: in a device cgroup those of the job, else those of the node."""
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        found = []
        for index in range(count.value):
            device = ctypes.c_void_p()
            try:
                self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
            except OSError:  # not ours
                continue
            found.append(device)
        return found

    def by_uuid(self, uuid: str) -> ctypes.c_void_p:
        """The GPU of a name like GPU-0a1b…"""
        device = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByUUID", ctypes.c_char_p(uuid.encode()), ctypes.byref(device))
        return device

    def busy(self, device: ctypes.c_void_p) -> float:
        """How busy one GPU is now, 0 to 1."""
        told = Utilization()
        self._call("nvmlDeviceGetUtilizationRates", device, ctypes.byref(told))
        return min(float(told.gpu) / PERCENT, 1.0)


def of_the_job(nvml: Nvml, visible: str) -> List[ctypes.c_void_p]:
    """The GPUs that CUDA_VISIBLE_DEVICES names; it counts among those that the process may use."""
    every = nvml.by_index()
    found = []
    for word in filter(None, (part.strip() for part in visible.split(","))):
        if word.isdigit():
            if int(word) < len(every):
                found.append(every[int(word)])
        else:
            found.append(nvml.by_uuid(word))
    return found


def sample(nvml: Nvml, devices: List[ctypes.c_void_p], period_s: float, result: Path) -> None:
    """Until TERM, or until the payload's shell has gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    parent = os.getppid()
    began = before = time.monotonic()
    busy, samples, ends = 0.0, 0, False
    while not ends:
        ends = signal.sigtimedwait([signal.SIGTERM, signal.SIGINT], period_s) is not None
        now = time.monotonic()
        busy += sum(nvml.busy(device) for device in devices) * (now - before)
        before, samples = now, samples + 1
        told = {"gpus": len(devices), "seconds": now - began, "busy": busy, "samples": samples}
        write(result, json.dumps(told))
        ends = ends or os.getppid() != parent


def write(result: Path, text: str) -> None:
    """Whole or not at all: the job may end at any moment."""
    partial = result.with_name(result.name + ".new")
    partial.write_text(text)
    partial.replace(result)


def main(library: str, period_s: str, result: str) -> None:
    """Sample, or say why not."""
    try:
        nvml = Nvml(library)
        devices = of_the_job(nvml, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        if devices:
            sample(nvml, devices, float(period_s), Path(result))
    except OSError as error:
        sys.exit(f"GPUs are not sampled: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
