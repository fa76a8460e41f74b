"""What a kill between two writes left behind is found at the next start."""

from __future__ import annotations

from pathlib import Path

from workflow_samples import receive

from dicomnode.scp.schema import JobState
from dicomnode.testing import sample_study
from dicomnode.workflow.housekeeping import name_held


def test_objects_that_were_held_without_their_item_get_one(make_node, tmp_path: Path) -> None:
    node = make_node(tmp_path)
    study = receive(node.spool, sample_study(2, matrix=32))
    job_id = node.spool.claim(study)
    ids = [i.id for i in node.spool.job(job_id).instances][:1]
    held = node.spool.split_off(job_id, ids, note="burned-in")  # and here the node was killed
    assert name_held(node.context) == 1
    (item,) = node.quarantine.items()
    assert (item.job_id, item.reason, item.state) == (held, "burned-in", "held")
    assert name_held(node.context) == 0
    assert node.spool.job(held).state is JobState.QUARANTINED
