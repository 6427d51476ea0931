"""10,000 idle connections: the cache's memory. ``python -m tests.bench.cache_idle [--connections 10000]``"""

from __future__ import annotations

import argparse
import resource
import socket
import time

from tests.bench.cache_peers import bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    with bench() as b:
        peer = b.start_edged()
        (path,) = b.objects(1, 4096)
        before = peer.rss()
        held = []
        for _ in range(options.connections):
            sock = socket.create_connection(("127.0.0.1", peer.port))
            sock.sendall(f"GET {b.origin}{path} HTTP/1.1\r\nHost: o\r\n\r\n".encode())
            if not sock.recv(65536).startswith(b"HTTP/1.1 200"):
                raise RuntimeError("no answer")
            held.append(sock)
        time.sleep(0.5)
        after = peer.rss()
        print(
            f"{options.connections} idle connections: {after / 2**20:.0f} MiB in all, "
            f"{(after - before) / options.connections:.0f} bytes for each"
        )
        print(f"  bar: <= 150 MiB: {'met' if after <= 150 << 20 else 'missed'}")
        for sock in held:
            sock.close()


if __name__ == "__main__":
    main()
