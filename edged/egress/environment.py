"""What a job's environment says of the way out: the proxy, the job's own pass, and what needs neither."""

from __future__ import annotations

from urllib.parse import quote

from edged.config import Config
from edged.identity.words import JobId

_LOCAL = ("localhost", "127.0.0.1", "::1")


def job_environment(config: Config, job: JobId, token: str, host: str) -> dict[str, str]:
    """Proxy variables of one job; empty where the site has no proxy.

    ``host``: what nodes call this machine, used unless [egress] host names it. ALL_PROXY is an http URL
    like the others: a ``socks5h`` one there stops Python clients that have no SOCKS support, though
    they would never use it. Who wants SOCKS finds it in EDGED_SOCKS_PROXY (same port, same words).
    """
    egress = config.egress
    if egress is None or not egress.listen:
        return {}
    address, _, port = egress.listen[0].rpartition(":")
    named = egress.host or host or address
    where = f"[{named}]" if ":" in named and not named.startswith("[") else named
    login = f"{quote(job, safe='')}:{quote(token, safe='')}@{where}:{port}"
    around = ",".join(dict.fromkeys((*_LOCAL, named.strip("[]"), *egress.no_proxy)))
    names = {
        "HTTP_PROXY": f"http://{login}",
        "HTTPS_PROXY": f"http://{login}",
        "ALL_PROXY": f"http://{login}",
        "NO_PROXY": around,
    }
    lower = {name.lower(): value for name, value in names.items()}  # curl reads http_proxy only so
    return {**names, **lower, "EDGED_SOCKS_PROXY": f"socks5h://{login}"}
