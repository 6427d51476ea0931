"""Every alert fires when it must and keeps quiet when all is well, as Prometheus itself reckons."""
# ruff: noqa: E501 - a table reads by its lines

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROLE = Path(__file__).parents[3] / "ansible/roles/edged_monitoring/files"
RULES = ROLE / "rules/edged.rules.yml"
MEANING = Path(__file__).parents[3] / "ansible/GUIDE.md"
PROMTOOL = shutil.which("promtool")
HOURS = 8  # when it is looked; the clock begins at 0
ERRORS, FINE = 'edged_http_requests_total{status="500"}', 'edged_http_requests_total{status="200"}'
VERDICTS, COPIES = "edged_identity_verdicts_total", "edged_storage_copies_total"
LOGIN, MISMATCH = 'edged_ssh_login_node_up{node="n"}', 'edged_ssh_host_key_mismatch{node="n"}'
USED, TOTAL = "edged_storage_space_used_bytes", "edged_storage_space_total_bytes"

# alert → series that make it fire, series with which it must not; values as promtool writes them, one a minute
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "EdgedDown": ({'up{job="edged-jobs"}': "0x720"}, {'up{job="edged-jobs"}': "1x720", 'up{job="node"}': "0x720"}),
    "EdgedNotReady": ({"edged_parts_not_ready": "2x720"}, {"edged_parts_not_ready": "0x720"}),
    "EdgedErrors": ({ERRORS: "0+60x720", FINE: "0+600x720"}, {ERRORS: "0+6x720", FINE: "0+600x720"}),
    "EdgedConnectionsRefused": ({"edged_http_connections_refused_total": "0+120x720"}, {"edged_http_connections_refused_total": "0+1x720"}),
    "EdgedStateUnwritable": ({'edged_state_writes_total{outcome="failed"}': "0+1x720"}, {'edged_state_writes_total{outcome="ok"}': "0+9x720"}),
    "EdgedCertificateExpires": ({"edged_tls_certificate_expiry_timestamp_seconds": "900000x720"}, {"edged_tls_certificate_expiry_timestamp_seconds": "2000000x720"}),
    "EdgedCertificateExpired": ({"edged_tls_certificate_expiry_timestamp_seconds": "90000x720"}, {"edged_tls_certificate_expiry_timestamp_seconds": "900000x720"}),
    "EdgedIssuerKeysStale": ({"edged_issuer_keys_fetched_timestamp_seconds": "10x720"}, {"edged_issuer_keys_fetched_timestamp_seconds": "0+60x720"}),
    "EdgedBanFeedLost": ({"edged_identity_feed_connected": "0x720"}, {"edged_identity_feed_connected": "1x720"}),
    "EdgedManyRefusals": ({VERDICTS + '{outcome="denied"}': "0+60x720", VERDICTS + '{outcome="allowed"}': "0+6x720"}, {VERDICTS + '{outcome="denied"}': "0+1x720", VERDICTS + '{outcome="allowed"}': "0+600x720"}),
    "EdgedBatchSilent": ({'edged_job_poll_timestamp_seconds{batch="slurm"}': "100x720"}, {'edged_job_poll_timestamp_seconds{batch="slurm"}': "0+60x720"}),
    "EdgedSubmissionsRefused": ({'edged_job_submissions_total{outcome="refused"}': "0+1x720"}, {'edged_job_submissions_total{outcome="ok"}': "0+9x720"}),
    "EdgedJobsLost": ({'edged_jobs_ended_total{state="LOST"}': "0+1x720"}, {'edged_jobs_ended_total{state="FINISHED"}': "0+9x720"}),
    "EdgedLoginNodeDown": ({LOGIN: "0x720"}, {LOGIN: "1x720"}),
    "EdgedHostKeyMismatch": ({MISMATCH: "1x720"}, {MISMATCH: "0x720"}),
    "EdgedExportFull": ({USED: "96x720", TOTAL: "100x720"}, {USED: "90x720", TOTAL: "100x720"}),
    "EdgedExportInodes": ({"edged_storage_inodes_used": "96x720", "edged_storage_inodes_total": "100x720"}, {"edged_storage_inodes_used": "9x720", "edged_storage_inodes_total": "100x720"}),
    "EdgedTransfersStall": ({'edged_storage_transfers_cut_total{why="stalled"}': "0+2x720"}, {'edged_storage_transfers_cut_total{why="banned"}': "0+2x720"}),
    "EdgedCopiesFail": ({COPIES + '{outcome="upstream"}': "0+9x720", COPIES + '{outcome="done"}': "0+1x720"}, {COPIES + '{outcome="upstream"}': "0+1x720", COPIES + '{outcome="done"}': "0+9x720"}),
    "EdgedXrootdProbeFails": ({"edged_xrootd_probe_up": "0x720"}, {"edged_xrootd_probe_up": "1x720"}),
    "EdgedUpstreamResting": ({"edged_cache_upstream_resting": "1x720"}, {"edged_cache_upstream_resting": "0x720"}),
    "EdgedCacheDocumentsRefused": ({'edged_cache_documents_refused_total{reason="rollback"}': "0+1x720"}, {'edged_cache_documents_refused_total{reason="rollback"}': "7x720"}),
    "EdgedWhitelistExpires": ({"edged_cache_whitelist_expiry_timestamp_seconds": "200000x720"}, {"edged_cache_whitelist_expiry_timestamp_seconds": "900000x720"}),
    "EdgedCacheDiskRefuses": ({"edged_cache_unkept_total": "0+60x720"}, {"edged_cache_unkept_total": "0+1x720"}),
    "EdgedEgressRefusals": ({'edged_egress_connections_total{outcome="no-rule"}': "0+900x720"}, {'edged_egress_connections_total{outcome="allowed"}': "0+9000x720"}),
}  # fmt: skip


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", RULES.read_text())


def test_every_alert_has_a_case_and_a_meaning() -> None:
    assert alerts() == list(CASES)
    told = re.findall(r"^\| (Edged\w+) \|", MEANING.read_text(), re.M)
    assert told == alerts()


def cases(alert: str) -> list[dict[str, Any]]:
    """promtool's tests of one alert. YAML reads JSON."""
    fires, quiet = CASES[alert]
    count = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    found = []
    for series, samples in ((fires, [{"labels": "{}", "value": 1}]), (quiet, [])):
        found.append(
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [{"expr": count, "eval_time": f"{HOURS}h", "exp_samples": samples}],
            }
        )
    return found


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here: the alert rules are unproven")
def test_rules_as_prometheus_reckons(tmp_path: Path) -> None:
    file = tmp_path / "alerts.test.yml"
    tests = [case for alert in CASES for case in cases(alert)]
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "10m", "tests": tests}))
    command = [str(PROMTOOL), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", sorted((ROLE / "dashboards").glob("*.json")), ids=lambda file: file.stem)
def test_dashboards_are_whole(file: Path) -> None:
    board = json.loads(file.read_text())
    assert board["uid"] == file.stem and board["title"].startswith("edged")
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) and board["panels"]
    for panel in board["panels"]:
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${source}"
        assert all(target["expr"] for target in panel["targets"])


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here: the panels' queries are unproven")
def test_queries_of_the_dashboards_parse(tmp_path: Path) -> None:
    boards = [json.loads(file.read_text()) for file in (ROLE / "dashboards").glob("*.json")]
    queries = [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"panel:{n}", "expr": query.replace("$__rate_interval", "5m").replace("$edge", ".+")}
        for n, query in enumerate(queries)
    ]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [str(PROMTOOL), "check", "rules", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
