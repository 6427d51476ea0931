"""For ``edged doctor``: what NAT needs of the kernel and of the machine."""

from __future__ import annotations

from pathlib import Path

from edged import programs
from edged.config import Config
from edged.doctor import Finding
from edged.errors import Unavailable

PART = "egress"
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


async def findings(config: Config) -> list[Finding]:
    """Nothing without [egress.nat]: the proxies need only names, which are looked at for all."""
    if config.egress is None or config.egress.nat is None:
        return []
    try:
        said = await programs.ask(["nft", "--version"])
    except Unavailable as error:
        return [Finding(PART, False, error.message, "install the package nftables")]
    forwards = _FORWARD.read_text().strip() == "1"  # noqa: ASYNC240 - procfs, no disk
    return [
        Finding(PART, said.code == 0, said.out.strip() or said.complaint, "install the package nftables"),
        Finding(
            PART,
            forwards,
            f"forwarding of IPv4 is {'on' if forwards else 'off'}",
            "start edged-forwarding, or set net.ipv4.ip_forward=1 in sysctl.d",
        ),
    ]
