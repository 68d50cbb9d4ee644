"""A command of ours on a cluster that is running already, as a Ray job: submit it, read what it says, stop it.

The cluster's nodes have Sluice installed, as for serving; what travels is the command, and a folder if one is named.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_STOP_WAIT_S = 30
"""What a stopped job has to write its checkpoint in; Ray's own 3 s are short for that."""


@dataclass(frozen=True)
class Job:
    """One job as the cluster knows it."""

    job_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    entrypoint: str
    message: str
    started_s: float | None
    """Unix time."""

    @property
    def ended(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


def submit(arguments: Sequence[str], *, address: str, working_dir: Path | None = None) -> str:
    """Start `sluice ARGUMENTS` on the cluster and return the job's id.

    Raises ClusterError if the cluster does not answer, ConfigError if it refuses the job.
    """
    environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}}
    if working_dir is not None:
        if not working_dir.is_dir():
            raise ConfigError(f"working_dir={working_dir} is no folder; name the one that your module lies in")
        environment["working_dir"] = str(working_dir)
    try:
        return str(
            _client(address).submit_job(
                entrypoint=f"python -m tune_spaces {shlex.join(arguments)}", runtime_env=environment
            )
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{address} refuses the job: {_short(error)}") from error


def jobs(*, address: str) -> list[Job]:
    """All that the cluster remembers, the newest first."""
    found = [_job(details) for details in _asked(lambda client: client.list_jobs(), address)]
    return sorted(found, key=lambda job: job.started_s or 0.0, reverse=True)


def job(job_id: str, *, address: str) -> Job:
    """One of them. Raises ConfigError if there is none of that id."""
    return _job(_asked(lambda client: client.get_job_info(job_id), address, job_id))


def logs(job_id: str, *, address: str) -> str:
    """What it has said so far."""
    return str(_asked(lambda client: client.get_job_logs(job_id), address, job_id))


def follow(job_id: str, *, address: str, poll_s: float = 1.0) -> Iterator[str]:
    """What it says, piece by piece, until it ends."""
    said = 0
    while True:
        ended = job(job_id, address=address).ended  # asked first: what it said before it ended is still read
        text = logs(job_id, address=address)
        if text[said:]:
            yield text[said:]
        said = len(text)
        if ended:
            return
        time.sleep(poll_s)


def stop(job_id: str, *, address: str, timeout_s: float = _STOP_WAIT_S + 15.0) -> Job:
    """Ask it to end, as Ctrl-C would, and wait for that; a training run writes its checkpoint first.

    Raises ClusterError if it still runs after `timeout_s`.
    """
    _asked(lambda client: client.stop_job(job_id), address, job_id)
    end = time.monotonic() + timeout_s
    while not (now := job(job_id, address=address)).ended:
        if time.monotonic() > end:
            raise ClusterError(f"job {job_id} is still {now.status} after {timeout_s:.0f} s; see its logs")
        time.sleep(0.3)
    return now


def _client(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except Exception as error:  # requests', Ray's own, and a bare ConnectionError
        raise ClusterError(
            f"no Ray dashboard answers at {address} ({_short(error)}); name the head's with --address http://HEAD:8265"
        ) from error


def _asked(question: Any, address: str, job_id: str | None = None) -> Any:
    client = _client(address)
    try:
        return question(client)
    except RuntimeError as error:
        if job_id is not None and ("does not exist" in str(error) or "404" in str(error)):
            raise ConfigError(f"{address} knows no job {job_id!r}; `sluice jobs list` shows which there are") from error
        raise ClusterError(f"{address}: {_short(error)}") from error


def _job(details: Any) -> Job:
    return Job(
        job_id=details.submission_id or details.job_id, status=str(getattr(details.status, "value", details.status)),
        entrypoint=details.entrypoint or "", message=details.message or "",
        started_s=details.start_time / 1000 if details.start_time else None,
    )  # fmt: skip


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
