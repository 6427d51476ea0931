"""Packets, messages and errors: what travels comes back the same, and nothing else is accepted."""

from __future__ import annotations

import errno
import os
import socket
import stat

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edged import errors
from edged.accounts import faults, messages, packets, statx
from edged.accounts.batch import require, verb_name
from edged.accounts.clients import Workplace
from edged.errors import BadRequest, Busy, Conflict, Denied, EdgeError, NotFound, Unavailable


@given(st.binary(min_size=1, max_size=2000))
@example(b"\x93\xa6Forget\xa1\xff\xa1\xff")  # text that is not UTF-8
def test_garbage_is_no_message(data: bytes) -> None:
    for union in (messages.FromFront, messages.ToWorker, messages.FilesRequest, messages.FromWorker):
        try:
            found = messages.decoder(union)(memoryview(data))
        except packets.BrokenPeer:
            continue
        assert isinstance(found, messages.Message)


def test_odd_names_travel_as_bytes() -> None:
    sent = messages.Stat(7, 8, "cms", b"caf\xe9\n\x00")
    found = msgspec.msgpack.Decoder(messages.FilesRequest).decode(messages.encode(sent))
    assert found == sent


def test_a_packet_and_its_descriptor() -> None:
    one, two = packets.pair()
    receiver = packets.Receiver()
    with one, two, open(__file__, "rb") as file:
        packets.send(one, b"hello", file.fileno())
        received = receiver.receive(two)
        assert received is not None
        data, fd = received
        assert bytes(data) == b"hello"
        assert fd is not None
        assert os.fstat(fd).st_ino == os.fstat(file.fileno()).st_ino
        facts = statx.known(fd)
        assert facts is not None
        assert facts.regular
        assert facts.inode == os.fstat(fd).st_ino
        os.close(fd)
        one.close()
        assert receiver.receive(two) is None


@pytest.mark.parametrize("count", [2, 4, 30])
def test_several_descriptors_are_refused_and_closed(count: int) -> None:
    one, two = packets.pair()
    with one, two:
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(one, [b"x"], [0] * count)
        with pytest.raises(packets.BrokenPeer):
            packets.Receiver().receive(two)
        assert len(os.listdir("/proc/self/fd")) == before


def test_an_overlong_packet_is_refused() -> None:
    one, two = packets.pair()
    with one, two:
        one.send(bytes(packets.MAX_PACKET + 1))
        with pytest.raises(packets.BrokenPeer):
            packets.Receiver().receive(two)


def test_only_regular_files_are_taken() -> None:
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    for fd in (read, write, null):
        facts = statx.known(fd)
        assert facts is not None
        assert not facts.regular
        with pytest.raises(packets.BrokenPeer):
            packets.read_memory(fd)
        os.close(fd)
    memory = packets.in_memory(b"x" * 100_000)
    assert stat.S_ISREG(os.fstat(memory).st_mode)
    assert packets.read_memory(memory) == b"x" * 100_000
    os.close(memory)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFound),
        (errno.EACCES, Denied),
        (errno.EXDEV, Denied),
        (errno.EEXIST, Conflict),
        (errno.EDQUOT, errors.NoSpace),
        (errno.ENOSPC, errors.NoSpace),
        (errno.ENAMETOOLONG, BadRequest),
        (errno.EAGAIN, Busy),
        (errno.EIO, Unavailable),
    ],
)
def test_system_errors(number: int, kind: type[EdgeError]) -> None:
    assert type(faults.of_os(OSError(number, "x"))) is kind


def test_quota_says_quota() -> None:
    assert "quota" in faults.of_os(OSError(errno.EDQUOT, "x")).message


class OddError(errors.Upstream):
    code = "odd"

    def __init__(self) -> None:
        super().__init__("odd", detail="d")


@pytest.mark.parametrize(
    "error",
    [
        Busy("b", retry_after_s=3.0, detail="d", queue="gpu"),
        NotFound("n"),
        errors.UnknownOutcome("u", detail="why", job="1"),
    ],
)
def test_errors_come_back_the_same(error: EdgeError) -> None:
    wire = msgspec.msgpack.Decoder(messages.Failure).decode(messages.encode(faults.to_wire(error)))
    back = faults.from_wire(wire)
    assert type(back) is type(error)
    assert (back.message, back.detail) == (error.message, error.detail)
    for name, value in error.values.items():
        assert back.values[name] == value


def test_an_error_of_another_constructor_comes_back_as_its_base() -> None:
    assert type(faults.from_wire(faults.to_wire(OddError()))) is errors.Upstream


def test_verbs_are_checked_against_the_grant() -> None:
    from edged.identity.words import Action
    from tests.support.verbs import Run, Sweep
    from tests.unit.accounts.test_rules import grant

    assert verb_name(Run) == "tests.support.verbs:Run"
    require(grant((Action.JOB_SUBMIT, "/"), job="j1"), Run("j1"))
    require(grant((Action.JOB_POLL, "/")), Sweep(1))
    for held in (
        grant((Action.JOB_SUBMIT, "/"), job="j2"),
        grant((Action.JOB_SUBMIT, "/")),
        grant((Action.JOB_POLL, "/"), job="j1"),
    ):
        with pytest.raises(Denied):
            require(held, Run("j1"))


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".x", "x" * 200, "a\n"])
def test_lock_names_are_names(name: str) -> None:
    with pytest.raises(BadRequest):
        Workplace("a", "/", "", "/tmp", 0.0).client_alive(name)
