"""From a description to the control files of its session: what runs, with which environment."""

from __future__ import annotations

from collections.abc import Mapping

from edged.config import Config
from edged.config.jobs import Jobs
from edged.egress import job_environment
from edged.identity.client import Verdicts
from services.jobs.batch.protocol import Submission
from services.jobs.batch.script import Files, Payload, inside, quoted, session_files
from services.jobs.credentials import PROXY_FILE, TOKEN_FILE
from services.jobs.gpus import sampler
from services.jobs.model import Description, Job
from services.jobs.policy import software_name


class Payloads:
    """Makes the files of each job."""

    def __init__(self, config: Config, jobs: Jobs, identity: Verdicts) -> None:
        self._config = config
        self._jobs = jobs
        self._identity = identity

    async def files(self, job: Job, grant: bytes, description: Description, submission: Submission) -> Files:
        """The control files: name in the session → content and mode. ``grant`` is the job's own."""
        payload = Payload(
            executable=description.executable,
            script=description.script,
            arguments=description.arguments,
            environment=description.environment,
            stdin=description.stdin or "",
            stdout=description.stdout,
            stderr=description.stderr,
            join=description.join,
            mpi=submission.mpi,
            init=(*self._init(description), *_credentials(job), *_programs(description)),
            site_environment={**self._environment(job), **await self._way_out(job, grant)},
            beside=sampler(self._jobs.gpu_sampler) if submission.gpus is not None else None,
        )
        return session_files(job.id, payload)

    def _init(self, description: Description) -> tuple[str, ...]:
        """The site's lines for the asked runtime environments."""
        lines = {software_name(item.name, item.version): item.init for item in self._jobs.software}
        return tuple(lines[name] for name in description.software if lines.get(name))

    async def _way_out(self, job: Job, grant: bytes) -> Mapping[str, str]:
        """Where the site has an egress proxy: its variables, with the job's own token."""
        if self._config.egress is None or not self._config.egress.listen:
            return {}
        token = await self._identity.issue_job_token(grant, job.id)
        return job_environment(self._config, job.id, token, self._config.site.host)

    def _environment(self, job: Job) -> Mapping[str, str]:
        """What the site tells every job."""
        told = {
            "EDGED_SITE": self._config.site.name,
            "EDGED_VO": job.vo,
            "EDGED_QUEUE": job.queue,
            **self._jobs.proxy_environment,
        }
        if job.array_index is not None:
            told |= {"EDGED_ARRAY_ID": job.array, "EDGED_ARRAY_INDEX": str(job.array_index)}
        return told


def _programs(description: Description) -> tuple[str, ...]:
    """Inputs that are programs."""
    return tuple(f"chmod u+x -- {quoted('./' + inside(name))}" for name in description.programs)


def _credentials(job: Job) -> tuple[str, ...]:
    """Where tools look for what the owner delegated; the files are the session's, renewed in place."""
    if not job.delegation or not job.credential_in_job:
        return ()
    files = {"X509_USER_PROXY": PROXY_FILE, "BEARER_TOKEN_FILE": TOKEN_FILE}
    return tuple(f'[ ! -f {file} ] || export {name}="$PWD/{file}"' for name, file in files.items())
