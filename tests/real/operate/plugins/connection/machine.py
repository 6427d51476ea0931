"""Ansible's way into a machine of the tests: all namespaces of its pid 1."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure  # type: ignore[import-untyped]
from ansible.plugins.connection import ConnectionBase  # type: ignore[import-untyped]

DOCUMENTATION = """
name: machine
short_description: enters every namespace of a process with nsenter
description: For tests; needs root on the control machine and nothing in the machine but sh.
version_added: "1.0"
author: the edged developers
options:
  leader:
    description: Process id of the machine's pid 1, as the control machine counts.
    type: str
    required: true
    vars:
      - name: ansible_machine_leader
extends_documentation_fragment:
  - connection_pipelining
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Connection(ConnectionBase):  # type: ignore[misc]
    """One machine."""

    transport = "machine"
    has_pipelining = True

    def _connect(self) -> Connection:
        if not Path(f"/proc/{self.get_option('leader')}").is_dir():
            raise AnsibleConnectionFailure("the machine is gone")
        self._connected = True
        return self

    def _inside(self, argv: list[str], data: bytes = b"") -> tuple[int, bytes, bytes]:
        enter = ["nsenter", "-t", self.get_option("leader"), "-a", "--root", "--wd"]
        environment = ["env", "-i", "HOME=/root", "LANG=C.UTF-8", f"PATH={PATH}"]
        done = subprocess.run([*enter, *environment, *argv], input=data, capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr

    def exec_command(self, cmd: str, in_data: Any = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        return self._inside(["/bin/sh", "-c", cmd], in_data or b"")

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        code, _, error = self._inside(["/bin/sh", "-c", 'cat > "$0"', out_path], Path(in_path).read_bytes())
        if code:
            raise AnsibleConnectionFailure(error.decode())

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        code, content, error = self._inside(["cat", in_path])
        if code:
            raise AnsibleConnectionFailure(error.decode())
        Path(out_path).write_bytes(content)

    def close(self) -> None:
        self._connected = False
