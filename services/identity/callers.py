"""Who may ask as which service: the uid decides (SO_PEERCRED), not what the caller says."""

from __future__ import annotations

import os
import pwd

from edged.config import Config
from edged.identity.words import ServiceName

ADMIN = ServiceName("admin")  # `edged ban` and `edged whoami` on this machine
API = ServiceName("identity-api")


class Callers:
    """The uids of this site's services. Root and identity's own user may speak for any of them."""

    def __init__(self, config: Config) -> None:
        self._users = config.identity.service_users
        self._trusted = frozenset({0, os.geteuid()})
        self._known = frozenset(
            filter(None, map(self._user_id, ("jobs", "storage", "cache", "egress", "portal", API, "issuers")))
        )

    def may_be(self, uid: int, service: ServiceName) -> bool:
        """Whether a peer with ``uid`` may ask as ``service``."""
        if uid in self._trusted:
            return True
        return service != ADMIN and uid == self._user_id(service)

    def may_listen(self, uid: int) -> bool:
        """Whether a peer with ``uid`` is one of ours at all, and may hear the ban feed."""
        return uid in self._trusted or uid in self._known

    def is_trusted(self, uid: int) -> bool:
        """Root, or identity itself."""
        return uid in self._trusted

    def is_identity(self, uid: int) -> bool:
        """The signer, which alone may ask the fetcher."""
        return uid in self._trusted or uid == self._user_id("identity")

    def _user_id(self, service: str) -> int | None:
        try:
            return pwd.getpwnam(self._users.get(service, f"edged-{service}")).pw_uid
        except (KeyError, ValueError):
            return None
