"""Deletes what is no longer needed: originals after delivery, sent objects and key slices after their days.

Every function may run at any time and again. Nothing is deleted that has not been answered, indexed or discarded.
"""

from __future__ import annotations

import shutil
import time

import structlog

from dicomnode.archive.amending import ANEW
from dicomnode.archive.answers import DELIVERED, PENDING
from dicomnode.scp.schema import JobState
from dicomnode.workflow.asking import ASK_PREFIX
from dicomnode.workflow.context import Context

log = structlog.get_logger(__name__)

DAY_S = 86400.0
ASK_S = 3600.0  # no command asks for longer
ADVICE = "release ID, to see what is wrong with them, or discard ID"


def close_jobs(ctx: Context) -> int:
    """Remove the originals of answered jobs whose results are all settled. Returns how many were closed.

    A result that was refused for good keeps the originals until its sent object expires. A study whose object is gone
    before it was sent is answered anew: a case in it was withdrawn, or the file was lost.
    """
    closed = 0
    for job_id in ctx.spool.job_ids(JobState.ANSWERED):
        job = ctx.spool.job(job_id)
        results = ctx.answers.results(answer_id=job.answer_id) if job.answer_id is not None else []
        lost = [
            r.id for r in results if (r.state == PENDING or r.error == ANEW) and not ctx.folders.sent(r.id).exists()
        ]
        if lost and job.instances:
            again = ctx.spool.requeue(job.id)  # before the rows go: a kill in between must not close the job
            ctx.answers.drop_results(lost)
            log.info("answered_anew", job=again)
            continue
        if any(r.state != DELIVERED and ctx.folders.sent(r.id).exists() for r in results):
            continue
        ctx.spool.remove_job_files(job.id)
        shutil.rmtree(ctx.folders.job(job.id), ignore_errors=True)
        ctx.spool.set_job_state(job.id, JobState.DONE)
        log.info("job_done", job=job.id)
        closed += 1
    return closed


def name_held(ctx: Context) -> int:
    """Give each held job an item of the quarantine, where a kill came between the two. Returns how many lacked one."""
    named = {item.job_id for item in ctx.quarantine.items()}
    nameless = [job_id for job_id in ctx.spool.job_ids(JobState.QUARANTINED) if job_id not in named]
    for job_id in nameless:
        job = ctx.spool.job(job_id)
        line = f"{len(job.instances)} of a study's objects were held when the node was stopped"
        item = ctx.quarantine.hold(job.note or "failed", line, job_id=job_id, advice=f"dicomnode quarantine {ADVICE}")
        log.warning("quarantined", job=job_id, item=item, reason=job.note or "failed")
    return len(nameless)


def expire(ctx: Context, *, keep_days: int, result_days: int, now: float | None = None) -> None:
    """Remove sent objects after ``keep_days``, query key slices after ``result_days``, leavings of killed commands."""
    now = time.time() if now is None else now
    _sweep_asked(ctx, now)
    for result in ctx.answers.results():
        sent = [p for p in (ctx.folders.sent_enhanced(result.id), ctx.folders.sent(result.id)) if p.exists()]
        done = result.delivered if result.state == DELIVERED else None
        failed = result.created if result.state not in (DELIVERED, PENDING) else None
        since = done or failed
        if since is not None and now - since > keep_days * DAY_S and sent:
            for path in sent:
                path.unlink()
            log.info("sent_object_expired", result=result.id)
    for relative in ctx.answers.drop_slices(now - result_days * DAY_S):
        path = ctx.folders.results / relative
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()


def _sweep_asked(ctx: Context, now: float) -> None:
    for folder in ctx.folders.work.glob(f"{ASK_PREFIX}*"):
        try:
            old = now - folder.stat().st_mtime > ASK_S
        except FileNotFoundError:  # its command has just ended
            continue
        if old:
            shutil.rmtree(folder, ignore_errors=True)
