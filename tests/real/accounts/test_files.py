"""File calls as a real account, through a real accountd."""

from __future__ import annotations

import asyncio
import os
import pwd
from pathlib import Path

import pytest

from edged.accounts.api import SESSIONS, Kind, Place
from edged.errors import BadRequest, Conflict, Denied, NotFound, TooLarge
from edged.identity.grants import Scope
from edged.identity.words import Action
from tests.real.accounts.conftest import Site
from tests.support.accounts import AccountStack


def at(path: str) -> Place:
    return Place("cms", path)


async def put(stack: AccountStack, grant: bytes, path: str, data: bytes, *, replace: bool = False) -> None:
    temporary = await stack.client.files.temporary(grant, at(path), parents=True)
    with open(temporary.fd, "wb") as file:
        file.write(data)
    await stack.client.files.commit(grant, temporary.place, at(path), replace=replace, durable=True)


async def test_a_file_appears_whole_and_belongs_to_the_account(
    site: Site, account: str, export: Path
) -> None:
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        temporary = await files.temporary(grant, at("a/b/data"), parents=True)
        os.write(temporary.fd, b"hello")
        os.close(temporary.fd)
        assert await files.list(grant, at("a/b")) == []  # invisible
        with pytest.raises(NotFound):
            await files.open(grant, temporary.place)
        done = await files.commit(
            grant,
            temporary.place,
            at("a/b/data"),
            replace=False,
            durable=True,
            attributes={"XrdCks.adler32": b"062c0215"},
            mtime_ns=1_600_000_000_000_000_000,
        )
        assert (done.size, done.mtime_ns, done.name) == (5, 1_600_000_000_000_000_000, "data")
        opened = await files.open(grant, at("a/b/data"))
        with open(opened.fd, "rb") as file:
            assert file.read() == b"hello"
        assert await files.attributes(grant, at("a/b/data")) == {"XrdCks.adler32": b"062c0215"}
        assert [entry.name for entry in await files.list(grant, at("a/b"))] == ["data"]
        assert (export / "a/b/data").stat().st_uid == pwd.getpwnam(account).pw_uid
        assert os.listdir(export / "a/b") == ["data"]


async def test_without_replace_an_existing_file_wins(site: Site, account: str, export: Path) -> None:
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        await put(stack, grant, "x", b"first")
        with pytest.raises(Conflict):
            await put(stack, grant, "x", b"second")
        assert (export / "x").read_bytes() == b"first"
        await put(stack, grant, "x", b"third", replace=True)
        assert (export / "x").read_bytes() == b"third"
        assert await files.sweep(grant, at(""), older_s=0.0) == 1  # what the refused one left
        assert os.listdir(export) == ["x"]


async def test_a_broken_copy_is_resumed(site: Site, account: str) -> None:
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        temporary = await files.temporary(grant, at("x"))
        os.write(temporary.fd, b"one")
        os.close(temporary.fd)
        again = await files.append(grant, temporary.place)
        assert again.entry.size == 3
        os.write(again.fd, b"two")
        assert os.pread(again.fd, 10, 0) == b"onetwo"
        os.close(again.fd)
        await files.discard(grant, temporary.place)
        await files.discard(grant, temporary.place)
        with pytest.raises(NotFound):
            await files.append(grant, temporary.place)


async def test_directories_rename_and_remove(site: Site, account: str) -> None:
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        await files.mkdir(grant, at("d"))
        with pytest.raises(Conflict):
            await files.mkdir(grant, at("d"))
        await files.mkdir(grant, at("d/e/f"), parents=True)
        await files.mkdir(grant, at("d/e/f"), parents=True)
        await put(stack, grant, "d/x", b"x")
        await put(stack, grant, "d/y", b"y")
        with pytest.raises(Conflict):
            await files.rename(grant, at("d/x"), at("d/y"), replace=False)
        assert await files.rename(grant, at("d/x"), at("d/y"), replace=True) is True
        assert await files.rename(grant, at("d/y"), at("d/z"), replace=False) is False
        with pytest.raises(Conflict):
            await files.remove(grant, at("d"))
        with pytest.raises(Denied):
            await files.remove(grant, at(""), recursive=True)
        await files.remove(grant, at("d"), recursive=True)
        with pytest.raises(NotFound):
            await files.stat(grant, at("d"))


async def test_a_tree_that_its_owner_made_deep_and_closed_is_removed(
    site: Site, account: str, export: Path
) -> None:
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        for part in range(5):
            await files.mkdir(grant, at("deep" + "/d" * 60 * part), parents=True)
        (export / "deep/d/d").chmod(0o000)
        await files.remove(grant, at("deep"), recursive=True)
        assert os.listdir(export) == []


async def test_names_that_are_not_utf8_or_hold_newlines(site: Site, account: str, export: Path) -> None:
    names = [os.fsdecode(b"caf\xe9"), "two\nlines", "ünïcode", os.fsdecode(b"\xff\xfe"), "-rf", "a b"]
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        for name in names:
            await put(stack, grant, f"{name}/{name}", b"x")
            assert (await files.stat(grant, at(f"{name}/{name}"))).name == name
            assert [entry.name for entry in await files.list(grant, at(name))] == [name]
        assert sorted(entry.name for entry in await files.list(grant, at(""))) == sorted(names)
        assert sorted(os.listdir(export)) == sorted(names)


async def test_ten_thousand_entries(site: Site, account: str, export: Path) -> None:
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        (export / "many").mkdir()
        for number in range(10_000):
            (export / f"many/file-{number:05}").touch()
        found = await files.list(grant, at("many"))
        assert {entry.name for entry in found} == {f"file-{number:05}" for number in range(10_000)}
        with pytest.raises(TooLarge):
            await files.list(grant, at("many"), limit=9_999)


async def test_attributes_times_and_space(site: Site, account: str) -> None:
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        await put(stack, grant, "x", b"x")
        await files.set_attributes(grant, at("x"), {"one": b"1", "two": bytes(1000)})
        await files.set_attributes(grant, at("x"), {}, ["one", "never-there"])
        assert await files.attributes(grant, at("x")) == {"two": bytes(1000)}
        with pytest.raises(TooLarge):
            await files.set_attributes(grant, at("x"), {"big": bytes(60_000)})
        await files.set_times(grant, at("x"), 1_500_000_000_000_000_000)
        assert (await files.stat(grant, at("x"))).mtime_ns == 1_500_000_000_000_000_000
        space = await files.space(grant, at(""))
        assert 0 < space.available <= space.total


async def test_links_are_followed_beneath_the_root_and_nowhere_else(
    site: Site, account: str, export: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        await put(stack, grant, "inside/file", b"x")
        (export / "good").symlink_to("inside/file")
        (export / "absolute").symlink_to(tmp_path / "secret")
        (export / "dots").symlink_to("../secret")
        (export / "outside").symlink_to(tmp_path)
        (export / "magic").symlink_to("/proc/self/fd/0")
        os.close((await files.open(grant, at("good"))).fd)
        for escape in ("absolute", "dots", "outside/secret", "magic"):
            with pytest.raises(Denied):
                await files.open(grant, at(escape))
        with pytest.raises(Denied):
            await files.temporary(grant, at("outside/new"))
        with pytest.raises(Denied):
            await files.remove(grant, at("outside/secret"))
        kinds = {entry.name: entry.kind for entry in await files.list(grant, at(""))}
        assert kinds["good"] is Kind.FILE
        assert kinds["absolute"] is kinds["outside"] is Kind.LINK
        await files.remove(grant, at("outside"), recursive=True)
        assert (tmp_path / "secret").exists()


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/passwd", "a//b", "./a", "a/", "a\0b"])
async def test_paths_that_are_not_normalised_are_refused(site: Site, account: str, path: str) -> None:
    async with site().running() as stack:
        with pytest.raises(BadRequest):
            await stack.client.files.open(stack.access(account), at(path))


async def test_only_regular_files_are_handed_over(site: Site, account: str, export: Path) -> None:
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        os.mkfifo(export / "fifo", 0o666)
        (export / "fifo").chmod(0o666)
        if os.geteuid() == 0:
            os.mknod(export / "device", 0o020666, os.makedev(1, 3))
            (export / "device").chmod(0o666)
        else:
            (export / "device").mkdir()
        for name in ("fifo", "device"):
            with pytest.raises(Conflict):
                await asyncio.wait_for(files.open(grant, at(name)), 5)
        assert (await files.stat(grant, at("fifo"))).kind is Kind.OTHER


async def test_scopes_are_enforced_by_the_worker(site: Site, account: str, export: Path) -> None:
    def scope(root: str, *actions: Action) -> tuple[Scope, ...]:
        return (Scope(frozenset(actions), root),)

    async with site().running() as stack:
        files, everything = stack.client.files, stack.access(account)
        await put(stack, everything, "foo/file", b"x")
        await put(stack, everything, "foobar/file", b"x")
        reader = stack.access(account, scope("/cms/foo", Action.STORAGE_READ))
        os.close((await files.open(reader, at("foo/file"))).fd)
        for refused in (
            files.open(reader, at("foobar/file")),
            files.temporary(reader, at("foo/new")),
            files.remove(reader, at("foo/file")),
            files.mkdir(reader, at("foo/d")),
            files.set_attributes(reader, at("foo/file"), {"other": b"1"}),
            files.list(reader, at("foobar")),
        ):
            with pytest.raises(Denied):
                await refused
        await files.set_attributes(reader, at("foo/file"), {"XrdCks.adler32": b"1"})
        creator = stack.access(account, scope("/cms/new/one", Action.STORAGE_CREATE))
        await put(stack, creator, "new/one", b"x")  # makes the leading directory, and a temporary beside it
        for refused in (
            put(stack, creator, "new/one", b"y", replace=True),
            files.remove(creator, at("new/one")),
            files.open(creator, at("new/one")),
            files.temporary(creator, at("new/two")),
        ):
            with pytest.raises(Denied):
                await refused
        within = stack.access(account, scope("/cms/new", Action.STORAGE_CREATE))
        assert await files.rename(within, at("new/one"), at("new/two"), replace=False) is False
        with pytest.raises(Denied):
            await files.rename(within, at("new/two"), at("foo/two"), replace=False)


async def test_a_session_opens_to_its_own_job_grant_only(site: Site, account: str) -> None:
    async with site().running() as stack:
        files, mine, other = stack.client.files, stack.job(account, "job-1"), stack.job(account, "job-2")
        await files.mkdir(mine, Place(SESSIONS, "job-1"))
        temporary = await files.temporary(mine, Place(SESSIONS, "job-1/input"))
        os.close(temporary.fd)
        await files.commit(mine, temporary.place, Place(SESSIONS, "job-1/input"), replace=True, durable=True)
        os.close((await files.open(mine, Place(SESSIONS, "job-1/input"))).fd)
        for grant in (other, stack.access(account)):
            with pytest.raises(Denied):
                await files.open(grant, Place(SESSIONS, "job-1/input"))
        with pytest.raises(Denied):
            await files.list(mine, Place(SESSIONS, ""))
        with pytest.raises(Denied):
            await files.open(mine, at("x"))
        await files.remove(mine, Place(SESSIONS, "job-1"), recursive=True)


async def test_many_calls_at_once(site: Site, account: str) -> None:
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        await put(stack, grant, "x", b"x")
        opened = await asyncio.gather(*(files.open(grant, at("x")) for _ in range(500)))
        assert {os.pread(one.fd, 1, 0) for one in opened} == {b"x"}
        for one in opened:
            os.close(one.fd)


async def test_a_cancelled_call_leaks_no_descriptor(site: Site, account: str) -> None:
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        await put(stack, grant, "x", b"x")
        before = len(os.listdir("/proc/self/fd"))
        calls = [asyncio.ensure_future(files.open(grant, at("x"))) for _ in range(100)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await files.stat(grant, at("x"))  # everything before it is answered
        assert len(os.listdir("/proc/self/fd")) == before
