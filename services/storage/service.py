"""Wiring of the storage service: what the WebDAV endpoint is made of."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from edged.accounts.api import Files
from edged.accounts.client import AccountClient
from edged.accounts.lanes import HUNG_S
from edged.config import Config
from edged.config.storage import Storage
from edged.http.server import HttpServer
from edged.identity.client import IdentityClient, Verdicts
from edged.identity.words import ServiceName
from edged.lifecycle import Service
from edged.services import Context
from edged.tls import ServerTls, client_context
from services.storage.changing import Changing
from services.storage.checksums import Checksums
from services.storage.copier import Copier
from services.storage.disk import Disk
from services.storage.endpoint import Endpoint
from services.storage.finding import Finding
from services.storage.guard import Guard
from services.storage.index import Index
from services.storage.intake import Memory
from services.storage.lockfile import Locks
from services.storage.locking import Locking
from services.storage.moving import Moving
from services.storage.namespace import Namespace, OwnNames, Target
from services.storage.reading import Reading
from services.storage.space import Spaces
from services.storage.thirdparty.copies import Copies, InProcess
from services.storage.thirdparty.dial import Dialer
from services.storage.thirdparty.turns import Turns
from services.storage.transfers import Transfers
from services.storage.upkeep import Upkeep
from services.storage.usage import Bookkeeper, files_of
from services.storage.wellknown import WellKnown
from services.storage.writing import Writing

NAME = ServiceName("storage")


def build(config: Config, context: Context) -> list[Service]:
    """The services of [storage]; none when it is not configured."""
    if config.storage is None:
        return []
    identity = IdentityClient(config, NAME)
    accounts = AccountClient.of(config)
    front = StorageFront(config, config.storage, identity, accounts, context)
    books = Bookkeeper(front.transfers, files_of(config), tends=context.worker == 0)
    return [identity, accounts, books, front]


class StorageFront:
    """The WebDAV endpoint with all its parts. ``addresses`` tells where it listens once running."""

    name: str = NAME

    def __init__(
        self, config: Config, storage: Storage, identity: Verdicts, accounts: AccountClient, context: Context
    ) -> None:
        files = accounts.files
        self._accounts = accounts
        self._config = config
        self._disks = {export.label: Disk(export.label, storage.threads) for export in storage.exports}
        self._own_names = own_names(config, storage)
        self.transfers = Transfers(storage.stall_s)
        identity.on_ban(self.transfers.cut)
        lock_file = config.runtime.run / "storage" / "locks"
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        self._locks = Locks(lock_file, limit=storage.locks, longest_s=storage.lock_s)
        self._turns = Turns(
            lock_file.parent / "copies",
            per_vo=storage.third_party.per_vo,
            waiting=storage.third_party.waiting,
        )
        self._spaces = Spaces(files, storage.space_s)
        self._well_known = WellKnown(storage, config.site.name, identity, self._spaces)
        self._upkeep = Upkeep(storage.exports, identity, files, self._spaces, self._disk_of)
        self._tends = context.worker == 0  # one process of several
        endpoint = self._endpoint(storage, identity, files)
        self._server = HttpServer(
            NAME,
            storage,
            endpoint.handle,
            tls=ServerTls(config.tls) if storage.tls else None,
            inherited=context.inherited.get(NAME),
            stop_deadline_s=config.runtime.stop_deadline_s,
            lean=frozenset({"GET", "HEAD", "PUT"}),
        )

    def _endpoint(self, storage: Storage, identity: Verdicts, files: Files) -> Endpoint:
        namespace = Namespace(storage.exports)
        guard = Guard(self._locks, namespace)
        checksums = Checksums(files, self._disk_of)
        index = Index(files, storage.listing)
        finding = Finding(storage, files, self._spaces, guard)
        reading = Reading(files, self._disk_of, checksums, self.transfers, index.page)
        memory = Memory(storage.upload_memory)
        writing = Writing(storage, files, self._disk_of, self.transfers, guard, memory=memory)
        changing = Changing(files, guard)
        copier = Copier(storage, files, self._disk_of, checksums, self.transfers)
        dialer = Dialer(storage.third_party, partner_tls(self._config))
        executor = InProcess(storage, files, dialer, self._disk_of, checksums, memory=memory)
        copies = Copies(
            storage.third_party,
            dialer,
            executor,
            self.transfers,
            guard,
            own_names=self._own_names,
            turns=self._turns,
        )
        moving = Moving(files, (namespace, self._own_names), guard, changing, copier, copies=copies)
        locking = Locking(files, guard, self._disk_of, storage.xml_body)
        verbs = {
            "GET": reading.get,
            "HEAD": reading.head,
            "PUT": writing.put,
            "DELETE": changing.delete,
            "MKCOL": changing.mkcol,
            "PROPFIND": finding.propfind,
            "PROPPATCH": finding.proppatch,
            "COPY": moving.copy,
            "MOVE": moving.move,
            "LOCK": locking.lock,
            "UNLOCK": locking.unlock,
        }
        return Endpoint(namespace, identity, files, verbs, (finding, index, self._well_known))

    def _disk_of(self, target: Target) -> Disk:
        return self._disks[target.export.label]

    def not_ready(self) -> str | None:
        """Which exports' file systems do not answer; the others go on."""
        silent = self._accounts.silent()
        hung = []
        for label, disk in self._disks.items():
            seconds = max(silent.get(label, 0.0), disk.silent_s)
            if seconds > HUNG_S:
                hung.append(f"{label} for {seconds:.0f} s")
        return f"file systems of exports do not answer: {', '.join(hung)}" if hung else None

    @property
    def addresses(self) -> list[str]:
        return self._server.addresses

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Listen; on leaving, running requests get their deadline."""
        async with AsyncExitStack() as stack:
            stack.callback(self._close)
            await stack.enter_async_context(self.transfers.watched(tasks))
            await stack.enter_async_context(self._server.running(tasks))
            for address in self._server.addresses:
                if not address.startswith("/"):
                    self._own_names.add_port(int(address.rpartition(":")[2]))
            self._well_known.url = self._public_url()
            if self._tends:
                await stack.enter_async_context(self._upkeep.running(tasks))
            yield

    def _public_url(self) -> str:
        storage = self._config.storage
        if storage is not None and storage.url:
            return storage.url
        port = self._server.addresses[0].rpartition(":")[2] if self._server.addresses else "443"
        return f"https://{self._config.site.host or socket.getfqdn()}:{port}/"

    def _close(self) -> None:
        self._locks.close()
        self._turns.close()
        for disk in self._disks.values():
            disk.shutdown()


def partner_tls(config: Config) -> ssl.SSLContext:
    """How we trust partners: the CA bundle, and the grid's CA directory where one is configured."""
    context = client_context(config.tls)
    if config.tls.ca_directory is not None:
        context.load_verify_locations(capath=str(config.tls.ca_directory))
    return context


def own_names(config: Config, storage: Storage) -> OwnNames:
    """The names under which a Destination means this endpoint."""
    hosts = {config.site.host or socket.getfqdn(), *config.site.aliases}
    ports = {443} if storage.tls else {80}
    if storage.url:
        parts = urlsplit(storage.url)
        hosts.add(parts.hostname or "")
        ports.add(parts.port or 443)
    return OwnNames(hosts, ports)
