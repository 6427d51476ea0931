"""What the doctor makes of what it saw."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from edged.doctor import Finding, told
from edged.findings import certificates, clock, daemons, disks
from edged.identity.testca import ThrowAwayCa
from edged.peers import Readiness, Ready
from services.jobs import findings as jobs
from services.storage import findings as storage


@pytest.mark.parametrize(
    ("state", "error_s", "ok"), [(0, 0.01, True), (5, 0.01, False), (-1, 0.0, False), (0, 16.0, False)]
)
def test_clock(state: int, error_s: float, ok: bool) -> None:
    assert clock.judged(state, error_s).ok is ok


def test_certificate_dates(tmp_path: Path) -> None:
    file = ThrowAwayCa(tmp_path).host("edge.example.org").certificate
    held = x509.load_pem_x509_certificates(file.read_bytes())[0]
    end = held.not_valid_after_utc
    assert certificates.dated("it", held, end - timedelta(days=15)).ok is (
        held.not_valid_before_utc < end - timedelta(days=15)
    )
    for moment in (
        end - timedelta(hours=1),
        end + timedelta(days=1),
        held.not_valid_before_utc - timedelta(days=1),
    ):
        finding = certificates.dated("it", held, moment)
        assert not finding.ok and finding.advice


def test_each_part_that_is_not_ready_is_a_finding() -> None:
    ready = Ready(False, {"jobs": "squeue does not answer", "storage": "no grant"}, "1")
    found = daemons.judged(Readiness("edged", "127.0.0.1:1", ready))
    assert [finding.ok for finding in found] == [False, False]
    assert "squeue" in found[0].text
    assert not daemons.judged(Readiness("jobs", "127.0.0.1:1", None))[0].ok


def test_partitions() -> None:
    assert jobs.judged({"gpu"}, {"gpu", "cpu"}).ok
    assert not jobs.judged({"gpu", "big"}, {"gpu"}).ok


def test_room_of_exports() -> None:
    assert storage.judged("/cms", "50 100 gpfs\n").ok
    assert not storage.judged("/cms", "1 100 gpfs\n").ok


def test_file_system_of_a_directory() -> None:
    mounts = "/dev/a / ext4 rw 0 0\nsrv:/x /var/my\\040state nfs4 rw 0 0\n"
    assert disks.file_system(Path("/var/my state/jobs"), mounts) == "nfs4"
    assert disks.file_system(Path("/var/mystate"), mounts) == "ext4"


def test_what_is_wrong_comes_with_advice() -> None:
    text = told([Finding("a", True, "fine", "unseen"), Finding("b", False, "broken", "mend it")])
    assert "unseen" not in text and "-> mend it" in text and text.endswith("2 looked at, 1 wrong")
