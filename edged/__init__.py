"""edged: the edge-service gateway suite of an HPC centre."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("edged")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
