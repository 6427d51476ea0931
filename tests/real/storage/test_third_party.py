"""COPY between two servers: pull, push, and partners that fail, lie or try to reach inside."""

from __future__ import annotations

import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.dav import Answer, Dav, read_until
from tests.support.storage import StorageSite
from tests.support.waiting import until

DATA = bytes(range(256)) * 20000
ADLER = f"{zlib.adler32(DATA):08x}"


@pytest.fixture
def there(other: StorageSite, dav: Dav) -> Iterator[Dav]:
    """The other endpoint, in a directory of the same name."""
    own = other.root / dav.root.name
    own.mkdir()
    other.own(own)
    client = Dav(other, f"/cms/{dav.root.name}", own)
    client.token = dav.token
    yield client
    client.close()
    assert not list(own.rglob(".edged-upload-*"))


def pull(dav: Dav, name: str, source: str, **headers: str) -> Answer:
    headers.setdefault("TransferHeaderAuthorization", f"Bearer {dav.token}")
    return dav("COPY", name, Source=source, **headers)


def last(answer: Answer) -> str:
    return answer.text.strip().splitlines()[-1]


def test_pull(dav: Dav, there: Dav) -> None:
    there("PUT", "f", DATA)
    answer = pull(
        dav, "in/f", there.url("f").replace("https", "davs"), Credential="none", Secure_Redirection="1"
    )
    assert (answer.status, last(answer)) == (202, "success: Created")
    assert answer.text.startswith("Perf Marker\nTimestamp: ")
    assert (dav.root / "in/f").read_bytes() == DATA
    assert dav("HEAD", "in/f", Want_Digest="adler32").headers["digest"] == f"adler32={ADLER}"


def test_lower_case_bearer_is_made_good(dav: Dav, there: Dav) -> None:
    there("PUT", "f", DATA)
    answer = pull(dav, "f", there.url("f"), TransferHeaderAuthorization=f"bearer {dav.token}")
    assert last(answer) == "success: Created"


def test_pull_by_several_streams(dav: Dav, there: Dav) -> None:
    size = (200 << 20) + 77
    file = there.site.put_file(f"{there.root.name}/big", DATA, size=size)
    answer = pull(dav, "big", there.url("big"), X_Number_Of_Streams="4")
    assert last(answer) == "success: Created"
    assert (dav.root / "big").stat().st_size == size
    expected = there("HEAD", "big", Want_Digest="adler32").headers["digest"]
    assert dav("HEAD", "big", Want_Digest="adler32").headers["digest"] == expected
    assert file.read_bytes() == (dav.root / "big").read_bytes()


def test_push(dav: Dav, there: Dav) -> None:
    dav("PUT", "f", DATA)
    headers = {"Destination": there.url("out/f"), "TransferHeaderAuthorization": f"Bearer {dav.token}"}
    assert last(dav("COPY", "f", **headers)) == "success: Created"
    assert (there.root / "out/f").read_bytes() == DATA
    again = dav("COPY", "f", Overwrite="F", **headers)
    assert (again.status, "412" in last(again)) == (202, True)


def test_overwrite(dav: Dav, there: Dav) -> None:
    there("PUT", "f", DATA)
    dav("PUT", "f", b"old")
    assert pull(dav, "f", there.url("f"), Overwrite="F").status == 412
    creator = dav.with_scope("storage.create:/")
    assert pull(creator, "f", there.url("f")).status == 403
    assert (dav.root / "f").read_bytes() == b"old"
    assert last(pull(dav, "f", there.url("f"))) == "success: Created"
    assert (dav.root / "f").read_bytes() == DATA


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("https://evil.example/x", 403),
        ("ftp://localhost/x", 400),
        ("https://user:pw@localhost/x", 400),
        ("nonsense", 400),
        ("https://localhost:99999/x", 400),
    ],
)
def test_refused_before_the_202(dav: Dav, source: str, status: int) -> None:
    assert pull(dav, "f", source).status == status
    assert not (dav.root / "f").exists()


def test_failures_are_told_after_the_202(dav: Dav, there: Dav) -> None:
    gone = pull(dav, "f", there.url("none"))
    assert (gone.status, last(gone)) == (202, "failure: rejected HEAD: 404 Not Found")
    refused = pull(dav, "f", there.url("none"), TransferHeaderAuthorization="Bearer rubbish")
    assert last(refused) == "failure: rejected GET: 401 Unauthorized"
    assert last(pull(dav, "f", "https://localhost:1/x")).startswith("failure: cannot connect to localhost")
    assert dav("COPY", "none", Destination=there.url("x")).status == 404
    assert list(dav.root.iterdir()) == []


def test_internal_addresses_are_denied_whatever_the_name(site: StorageSite, ground: Path) -> None:
    """A name on the partners' list, whose addresses the policy forbids: nobody is connected to."""
    settings = {"third_party": {"partners": ["*"]}}
    strict = StorageSite(ground / "strict-policy", ca=site.ca, issuer=site.issuer, settings=settings)
    with strict, Dav(strict) as dav, socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.2)
        port = canary.getsockname()[1]
        for host in (
            "localhost",
            "127.0.0.1",
            "2130706433",
            "0x7f.1",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
        ):
            answer = pull(dav, "f", f"https://{host}:{port}/x")
            assert answer.status in (202, 400), host
            assert answer.status == 400 or "no address this site connects to" in last(answer), host
        with pytest.raises(TimeoutError):
            canary.accept()
        assert pull(dav, "f", f"http://example.org:{port}/x").status == 403  # plain http is off


class Partner:
    """A server whose every answer is written by the test: one handler per connection, in a thread."""

    def __init__(self, site: StorageSite, handler: Callable[[ssl.SSLSocket, bytes, int], None]) -> None:
        self._handler = handler
        self.heads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"https://localhost:{self.port}/x"
        host = site.ca.host("localhost", "127.0.0.1")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(host.certificate, host.key)

    @contextmanager
    def running(self) -> Iterator[Partner]:
        thread = threading.Thread(target=self._serve, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                raw, _ = self._listener.accept()
                threading.Thread(target=self._one, args=(raw,), daemon=True).start()

    def _one(self, raw: socket.socket) -> None:
        with suppress(OSError), self._context.wrap_socket(raw, server_side=True) as sock:
            head = read_until(sock, b"\r\n\r\n")
            self.heads.append(head)
            self._handler(sock, head, len(self.heads))


def answer_of(status: str, *headers: str) -> bytes:
    return ("\r\n".join([f"HTTP/1.1 {status}", *headers]) + "\r\n\r\n").encode()


SIZE = f"Content-Length: {len(DATA)}"


def test_a_wrong_source_digest_is_noticed(dav: Dav) -> None:
    def lie(sock: ssl.SSLSocket, head: bytes, _: int) -> None:
        sock.sendall(answer_of("200 OK", SIZE, "Digest: adler32=00000001"))
        if head.startswith(b"GET"):
            sock.sendall(DATA)

    with Partner(dav.site, lie).running() as partner:
        assert last(pull(dav, "f", partner.url)).startswith("failure: checksum mismatch")
        assert last(pull(dav, "f", partner.url, RequireChecksumVerification="false")) == "success: Created"


def test_a_required_checksum_must_exist(dav: Dav) -> None:
    def silent(sock: ssl.SSLSocket, head: bytes, _: int) -> None:
        sock.sendall(answer_of("200 OK", SIZE))
        if head.startswith(b"GET"):
            sock.sendall(DATA)

    with Partner(dav.site, silent).running() as partner:
        assert "tells no checksum" in last(pull(dav, "f", partner.url, RequireChecksumVerification="true"))
        assert last(pull(dav, "f", partner.url)) == "success: Created"


def test_a_broken_pull_goes_on_by_range(dav: Dav) -> None:
    def breaking(sock: ssl.SSLSocket, head: bytes, number: int) -> None:
        common = ("Accept-Ranges: bytes", 'ETag: "e"', f"Digest: adler32={ADLER}")
        if head.startswith(b"HEAD"):
            sock.sendall(answer_of("200 OK", SIZE, *common))
        elif number == 2:
            sock.sendall(answer_of("200 OK", SIZE, *common) + DATA[:3_000_000])
        else:
            start = int(head.partition(b"Range: bytes=")[2].partition(b"-")[0])
            told = f"Content-Range: bytes {start}-{len(DATA) - 1}/{len(DATA)}"
            length = f"Content-Length: {len(DATA) - start}"
            sock.sendall(answer_of("206 Partial Content", length, told, *common) + DATA[start:])

    with Partner(dav.site, breaking).running() as partner:
        assert last(pull(dav, "f", partner.url)) == "success: Created"
        assert b'If-Range: "e"' in partner.heads[-1]
    assert (dav.root / "f").read_bytes() == DATA


def test_a_changed_source_is_not_glued_together(dav: Dav) -> None:
    def changing(sock: ssl.SSLSocket, head: bytes, number: int) -> None:
        common = ("Accept-Ranges: bytes", f'ETag: "{number}"')
        sock.sendall(answer_of("200 OK", SIZE, *common))
        if head.startswith(b"GET"):
            sock.sendall(DATA[:1_000_000])

    with Partner(dav.site, changing).running() as partner:
        assert last(pull(dav, "f", partner.url)).startswith("failure: the source changed")
    assert list(dav.root.iterdir()) == []


def test_a_stalled_source_ends(dav: Dav) -> None:
    """third_party.stall_s is 2 here, and 2 attempts; without ETag every attempt starts anew."""

    def stall(sock: ssl.SSLSocket, head: bytes, _: int) -> None:
        if head.startswith(b"HEAD"):
            sock.sendall(answer_of("405 Method Not Allowed", "Content-Length: 0"))
            return
        sock.sendall(answer_of("200 OK", SIZE) + DATA[:1000])
        with suppress(OSError):
            sock.recv(1)

    with Partner(dav.site, stall).running() as partner:
        answer = pull(dav, "f", partner.url)
    assert last(answer).startswith("failure: ")
    assert answer.text.count("Perf Marker") > 3
    assert list(dav.root.iterdir()) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02 nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Length: 20\r\n\r\n0123456789",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n0123456789",
        b"HTTP/1.1 302 Found\r\nLocation: https://localhost/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: https://[::1]:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: https://169.254.169.254/\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
)
def test_hostile_answers(dav: Dav, raw: bytes) -> None:
    def hostile(sock: ssl.SSLSocket, _head: bytes, _: int) -> None:
        sock.sendall(raw)

    with Partner(dav.site, hostile).running() as partner:
        answer = pull(dav, "f", partner.url, Copy_Flags="NoHead")
    assert (answer.status, last(answer)[:9]) == (202, "failure: ")
    assert "internal error" not in last(answer)
    assert list(dav.root.iterdir()) == []


def test_tokens_stay_with_their_origin(dav: Dav) -> None:
    def second(sock: ssl.SSLSocket, head: bytes, _: int) -> None:
        sock.sendall(answer_of("200 OK", SIZE))
        if head.startswith(b"GET"):
            sock.sendall(DATA)

    with Partner(dav.site, second).running() as elsewhere:

        def first(sock: ssl.SSLSocket, _head: bytes, _: int) -> None:
            sock.sendall(
                answer_of("307 Temporary Redirect", f"Location: {elsewhere.url}", "Content-Length: 0")
            )

        with Partner(dav.site, first).running() as partner:
            assert last(pull(dav, "f", partner.url)) == "success: Created"
            assert all(b"Authorization: Bearer " in head for head in partner.heads)
            assert not any(b"Authorization" in head for head in elsewhere.heads)


def test_a_client_that_leaves_cancels_the_copy(dav: Dav) -> None:
    leaving = threading.Event()

    def slow(sock: ssl.SSLSocket, head: bytes, _: int) -> None:
        sock.sendall(answer_of("200 OK", SIZE))
        if head.startswith(b"GET"):
            sock.sendall(DATA[:1000])
            sock.settimeout(20)
            with suppress(TimeoutError):
                with suppress(ConnectionError, ssl.SSLError):  # however it ends the connection
                    sock.recv(1)
                leaving.set()

    with Partner(dav.site, slow).running() as partner, dav.raw() as sock:
        token = f"Bearer {dav.token}"
        sock.sendall(dav.head_of("COPY", "f", Source=partner.url, TransferHeaderAuthorization=token))
        until(lambda: any(head.startswith(b"GET") for head in partner.heads), "the copy began", 10)
        assert list(dav.root.glob(".edged-upload-*"))
        sock.close()
        assert leaving.wait(20)
    until(lambda: not list(dav.root.iterdir()), "nothing is left", 10)


def test_push_goes_to_servers_that_ignore_expect_or_refuse(dav: Dav) -> None:
    dav("PUT", "f", DATA)
    bodies: list[int] = []

    def old(sock: ssl.SSLSocket, head: bytes, _: int) -> None:
        if head.startswith(b"HEAD"):
            sock.sendall(answer_of("200 OK", SIZE, f"Digest: adler32={ADLER}"))
            return
        got = len(head.partition(b"\r\n\r\n")[2])
        while got < len(DATA) and (block := sock.recv(1 << 20)):
            got += len(block)
        bodies.append(got)
        sock.sendall(answer_of("201 Created", "Content-Length: 0"))

    def full(sock: ssl.SSLSocket, _head: bytes, _: int) -> None:
        sock.sendall(answer_of("507 Insufficient Storage", "Content-Length: 0"))

    with Partner(dav.site, old).running() as partner:
        assert last(dav("COPY", "f", Destination=partner.url)) == "success: Created"
        assert bodies == [len(DATA)]
    with Partner(dav.site, full).running() as partner:
        answer = dav("COPY", "f", Destination=partner.url)
        assert last(answer) == "failure: rejected PUT: 507 Insufficient Storage"
