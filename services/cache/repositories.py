"""The repositories and destinations of the configuration, and which request belongs to which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from edged.config.cache import Cache, UpstreamLimits
from edged.config.cache import Destination as DestinationSection
from edged.config.cache import Repository as RepositorySection
from edged.errors import ConfigError
from services.cache import names, signatures
from services.cache.documents import Documents
from services.cache.names import CvmfsPath
from services.cache.requests import Refused, Request
from services.cache.traffic import Traffic
from services.cache.upstream.origin import Origin


class Origins:
    """One Origin per base URL, however many repositories share it."""

    def __init__(self, limits: UpstreamLimits) -> None:
        self.limits = limits
        self._known: dict[str, Origin] = {}

    def of(self, bases: Iterable[str]) -> tuple[Origin, ...]:
        """The origins of these base URLs, in their order."""
        return tuple(self._known.setdefault(base, Origin(base, self.limits)) for base in bases)

    def all(self) -> list[Origin]:
        """All there are."""
        return list(self._known.values())

    def close(self) -> None:
        """Drop every connection."""
        for origin in self._known.values():
            origin.close()


@dataclass(slots=True, eq=False)
class Repository:
    """A CVMFS repository in use."""

    name: str
    section: RepositorySection
    origins: tuple[Origin, ...]
    documents: Documents
    traffic: Traffic


@dataclass(slots=True, eq=False)
class Destination:
    """Web servers that may be cached."""

    section: DestinationSection
    origins: tuple[Origin, ...]
    traffic: Traffic


@dataclass(frozen=True, slots=True)
class CvmfsRoute:
    """A request for something of a repository."""

    repository: Repository
    path: CvmfsPath


@dataclass(frozen=True, slots=True)
class WebRoute:
    """A request for a destination. ``key`` is the cache's: authority and path, never Host."""

    destination: Destination
    key: bytes
    path: bytes


Route = CvmfsRoute | WebRoute


class Routes:
    """Decides what a request asks for; everything unknown is refused."""

    def __init__(self, config: Cache, origins: Origins, state: Path) -> None:
        self._config = config
        self._origins = origins
        self._state = state
        self._sections = {section.name: section for section in config.repositories}
        self._keys = {section.name: _keys(section) for section in config.repositories}
        self._hosts = {section.name: _hosts(section) for section in config.repositories}
        self.repositories: dict[str, Repository] = {}
        self.destinations = [
            Destination(section, origins.of(section.bases), Traffic(section.name, "destination"))
            for section in config.destinations
        ]

    def of(self, request: Request) -> Route:
        """The route of a request. Raises Refused."""
        if request.path.startswith(b"/cvmfs/"):
            return self._cvmfs(request)
        if request.authority:
            authority = request.authority.decode()
            for destination in self.destinations:
                section = destination.section
                if authority in section.hosts and request.path.startswith(section.prefix.encode()):
                    return WebRoute(destination, request.authority + request.path, request.path)
        raise Refused(403, "this cache does not serve that")

    def repository(self, name: str) -> Repository:
        """The repository of this name. Raises Refused when the configuration does not allow it."""
        known = self.repositories.get(name)
        if known is not None:
            return known
        section = self._section(name)
        if section is None or len(self.repositories) >= self._config.max_repositories:
            raise Refused(403, "this cache does not serve that repository")
        documents = Documents(name, self._state / name, self._keys[section.name])
        found = Repository(name, section, self._origins.of(section.stratums), documents, Traffic(name))
        self.repositories[name] = found
        return found

    def forget(self, repository: Repository) -> None:
        """A name under a wildcard that no stratum knows: it takes no place among the known."""
        self.repositories.pop(repository.name, None)

    def _section(self, name: str) -> RepositorySection | None:
        if name == names.INFO:
            return self._config.repositories[0] if self._config.repositories else None
        exact = self._sections.get(name)
        if exact is not None:
            return exact
        domain = name
        while "." in domain:
            domain = domain.partition(".")[2]
            if (section := self._sections.get(f"*.{domain}")) is not None:
                return section
        return None

    def _cvmfs(self, request: Request) -> CvmfsRoute:
        path = names.parse(request.path)
        if path is None:
            raise Refused(404, "no such thing in a CVMFS repository")
        repository = self.repository(path.repository)
        if request.authority and request.authority.decode() not in self._hosts[repository.section.name]:
            raise Refused(403, "not a stratum of that repository")
        return CvmfsRoute(repository, path)


def _hosts(section: RepositorySection) -> frozenset[str]:
    bases = (base.partition("://")[2].removesuffix(":80") for base in section.stratums)
    return frozenset((*bases, *section.hosts))


def _keys(section: RepositorySection) -> list[rsa.RSAPublicKey]:
    found = []
    for path in section.keys:
        try:
            found.append(signatures.master_key(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise ConfigError([f"cache.repository[{section.name}].keys: {path}: {error}"]) from None
    return found
