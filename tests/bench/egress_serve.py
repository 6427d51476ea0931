"""The gate alone, for a bench: policy, accounts in a real store, audit and access log on."""

from __future__ import annotations

import asyncio
import resource
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from edged import config, logs
from edged.egress.names import Names
from services.egress.accounts import Accounts
from services.egress.bookkeeping import Bookkeeper
from services.egress.gate import Gate
from services.egress.ledger import Ledger, store_of
from tests.support.egress import Voucher


async def serve(file: Path) -> None:
    configuration = config.load(file)
    assert configuration.egress is not None
    logs.setup(audit_file=configuration.log.audit_file, stream=(file.parent / "gate.log").open("a"))
    voucher, accounts, store = Voucher(), Accounts(), store_of(configuration)
    voucher.job("bench")
    store.prepare()
    settings = configuration.egress
    books = Bookkeeper(accounts, Ledger(store), period_s=settings.accounts_s, keep_s=settings.keep_s)
    gate = Gate(configuration, voucher, accounts, Names(settings.resolvers))
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        for service in (store, books, gate):
            await stack.enter_async_context(service.running(tasks))
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(serve(Path(sys.argv[1])))
