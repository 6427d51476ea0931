"""Runs as a program: pyarcrest, unchanged, takes two jobs from submission to clean and prints what it saw.

pyarcrest_job.py HOST PORT VERSION DIRECTORY [PROXY]      the token comes in the environment
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append("/usr/lib/python3/dist-packages")  # the arc bindings, which are no PyPI package

from pyarcrest.arc import ARCRest  # type: ignore[import-untyped]

DESCRIPTION = """&(executable="run.sh")(arguments="{n}")(inputfiles=("run.sh" "{script}"))(stdout="out")(join=yes)
(outputfiles=("sub/" ""))(runtimeenvironment="ENV/PROXY")(jobname="py{n}")(walltime="PT5M")"""
SCRIPT = """#!/bin/sh
echo "number $1"; mkdir sub; echo deep >sub/deep
[ -n "$X509_USER_PROXY" ] && head -n1 "$X509_USER_PROXY"
[ -n "$BEARER_TOKEN_FILE" ] && cut -c1-3 "$BEARER_TOKEN_FILE"
true
"""


def main(host: str, port: str, version: str, directory: str, proxy: str = "") -> None:
    script = os.path.join(directory, "run.sh")
    Path(script).write_text(SCRIPT)
    client = ARCRest.getClient(
        host=host, port=int(port), version=version, proxypath=proxy or None, token=os.environ.get("TOKEN")
    )
    texts = [DESCRIPTION.format(n=n, script=script) for n in range(2)]
    results = client.submitJobs(texts, "short", workers=2)
    assert not any(one.error for one in results), [one.value for one in results]
    jobs = [one.value[0] for one in results]
    while {one.value for one in client.getJobsStatus(jobs)} != {"FINISHED"}:
        time.sleep(0.2)
    infos = [one.value for one in client.getJobsInfo(jobs)]
    errors = client.downloadJobFiles(
        directory, jobs, diagnoseFiles={job: ["errors", "description"] for job in jobs}
    )
    seen: dict[str, Any] = {
        "states": [one["state"] for one in infos],
        "exits": [one["ExitCode"] for one in infos],
        "outputs": [Path(directory, job, "out").read_text() for job in jobs],
        "deep": [Path(directory, job, "sub", "deep").read_text() for job in jobs],
        "files": sorted(os.listdir(os.path.join(directory, jobs[0]))),
        "errors": [str(error) for one in errors for error in one],
        "listed": set(jobs) <= set(client.getJobsList()),
        "delegations": [one.value for one in client.getJobsDelegations(jobs)],
        "kept": [one["type"] for one in client.getDelegationsList()],
        "restart": [str(one.value) for one in client.restartJobs(jobs)],
        "kill": [one.value for one in client.killJobs(jobs)],
    }
    delegation = seen["delegations"][0][0]
    client.refreshDelegation(delegation, proxypath=proxy or None)
    seen["clean"] = [one.value for one in client.cleanJobs(jobs)]
    client.deleteDelegation(delegation)
    print(json.dumps(seen))


main(*sys.argv[1:])
