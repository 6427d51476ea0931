"""The uid decides which service a caller is."""

from __future__ import annotations

import os
import pwd

from edged.config import parse
from edged.identity.words import ServiceName
from services.identity.callers import ADMIN, Callers

NOBODY = pwd.getpwnam("nobody").pw_uid
DAEMON = pwd.getpwnam("daemon").pw_uid


def test_a_service_is_its_user_and_no_other() -> None:
    users = {"jobs": "nobody", "storage": "daemon", "cache": "no-such-user", "admin": "nobody"}
    callers = Callers(parse({"site": {"name": "T"}, "identity": {"service_users": users}}))
    assert callers.may_be(NOBODY, ServiceName("jobs"))
    assert not callers.may_be(NOBODY, ServiceName("storage"))
    assert not callers.may_be(NOBODY, ADMIN)  # no configuration makes an admin of a service's user
    assert not callers.may_be(NOBODY, ServiceName("no\0such"))
    assert callers.may_be(DAEMON, ServiceName("storage"))
    assert not callers.may_be(DAEMON, ServiceName("cache"))
    assert callers.may_listen(NOBODY)
    assert not callers.may_listen(54321)
    assert not callers.is_identity(NOBODY)


def test_root_and_identity_itself_may_be_anyone() -> None:
    callers = Callers(parse({"site": {"name": "T"}}))
    for uid in (0, os.geteuid()):
        assert callers.may_be(uid, ADMIN)
        assert callers.may_listen(uid)
        assert callers.is_identity(uid)
