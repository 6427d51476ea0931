"""The zygote: has the workers' code in memory and nothing else open, and forks workers from it.

Forked by accountd's process before it opens anything. It answers nobody; a worker speaks for itself
over the control socket it was born with.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import NoReturn

from edged.accounts import packets, privileges
from edged.accounts.api import BatchVerb
from edged.accounts.batch import BatchCalls, load_verbs
from edged.accounts.files import FileCalls
from edged.accounts.messages import Start, WorkerKind, decoder
from edged.accounts.privileges import Account
from edged.accounts.settings import PATH
from edged.accounts.worker import Calls, Worker
from edged.logs import get_logger

log = get_logger("edged.zygote")

_decode: Callable[[memoryview], Start] = decoder(Start)


def run(sock: socket.socket, *, own: bool) -> None:
    """Fork a worker for each Start, until accountd is gone. ``own``: self mode, become nobody."""
    privileges.name_process("edged-zygote")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C goes to the whole terminal; accountd decides
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    verbs = load_verbs()
    receiver = packets.Receiver()
    gc.freeze()  # a collection in a worker would copy all our pages
    while (received := receiver.receive(sock)) is not None:
        data, control = received
        if control is None:
            raise packets.BrokenPeer("a worker needs its control socket")
        start = _decode(data)
        if _fork() == 0:
            sock.close()
            _be_worker(start, socket.socket(fileno=control), verbs, own=own)
        os.close(control)  # where there is no worker, accountd sees it end


def _fork() -> int:
    """As fork(2); -1 where there may be no more processes now."""
    try:
        return os.fork()
    except OSError as error:
        log.error("no worker could be forked", extra={"reason": str(error)})  # noqa: TRY400
        return -1


def _be_worker(
    start: Start, control: socket.socket, verbs: Mapping[str, type[BatchVerb]], *, own: bool
) -> NoReturn:
    """From here on the account may be unable to read our own code: all of it is imported already."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _become(start, own=own)
        calls: Calls = FileCalls(start) if start.kind is WorkerKind.FILES else BatchCalls(start, verbs)
        Worker(start, control, calls).serve()
        status = 0
    except Exception:
        log.exception("worker failed", extra={"account": start.account, "kind": start.kind.value})
    finally:
        os._exit(status)


def _become(start: Start, *, own: bool) -> None:
    os.chdir("/")
    os.umask(0o027)
    os.environ.clear()
    os.environ.update(environment(start.account, start.home) | start.environment)
    privileges.name_process(f"{start.kind[0]}-worker:{start.account}")
    if own:
        privileges.harden()
    else:
        privileges.become(Account(start.account, start.uid, start.gid, start.groups, start.home))
    os.setsid()  # a batch client's signals reach its own group only


def environment(account: str, home: str) -> dict[str, str]:
    """All that a worker and its batch clients find in their environment."""
    return {
        "PATH": PATH,
        "HOME": home,
        "USER": account,
        "LOGNAME": account,
        "LC_ALL": "C",
        "TZ": "UTC",
    }
