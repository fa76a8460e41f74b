"""``dicomnode quarantine``: what it says of received objects that are held."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from test_cli import Done
from test_cli import run as command
from workflow_samples import receive

from dicomnode.config import load_settings
from dicomnode.deid.by_hand import NOTHING, ByHand, parse_mask
from dicomnode.node import Node
from dicomnode.scp.schema import JobState
from dicomnode.testing import sample_study
from dicomnode.workflow.holding import SOLUTIONS, commands_for


@pytest.fixture(autouse=True)
def _own_surroundings(no_settings_from_outside):
    """An empty working folder."""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "node.toml"
    peers = "".join(
        f'[[dicom.peers]]\nname = "{name}"\nae_title = "{title}"\nport = 11999\n'
        for name, title in (("ct-1", "CT"), ("ct-2", "CT"), ("pacs", "PACS"))
    )
    file.write_text(f'[node]\ndata_dir = "{tmp_path / "var"}"\n{peers}', "utf-8")
    return file


@pytest.fixture
def node(settings: Path) -> Iterator[Node]:
    """The node of these settings, closed with the test."""
    with closing(Node(load_settings(settings))) as node:
        yield node


def start(*arguments: str) -> Done:
    return command("quarantine", *arguments)


def run(*arguments: str) -> str:
    """What a command prints; it must succeed."""
    done = start(*arguments)
    assert done.code == 0, done.err
    return done.out


def refused(*arguments: str) -> str:
    """The one line of a command that is wrong usage."""
    done = start(*arguments)
    assert done.code == 2
    return done.error()


def hold(node: Node, calling: str, slices: int, seed: int, reason: str = "audit") -> int:
    study = receive(node.spool, sample_study(slices, seed=seed, matrix=32), calling=calling)
    job = node.spool.claim(study)
    assert job is not None
    node.spool.set_job_state(job, JobState.QUARANTINED)
    return node.quarantine.hold(reason, "something was left", place="(0010,0010)", job_id=job)


def test_held_items_name_their_sender_and_how_many_objects_they_are(settings, node):
    held = [hold(node, "PACS", 3, 1), hold(node, "CT", 2, 2), hold(node, "GONE", 1, 3)]
    file = node.quarantine.hold("input", "a file of 'index add'", place="x")
    items = json.loads(run("list", "--json", "--config", str(settings)))["items"]
    assert {i["id"]: (i["sender"], i["instances"]) for i in items} == {
        held[0]: ("pacs", 3),
        held[1]: ("ct-1, ct-2", 2),  # two peers under one AE title
        held[2]: ("GONE", 1),  # no longer a peer
        file: (None, None),
    }
    assert "sender: pacs\ninstances: 3\n" in run("show", str(held[0]), "--config", str(settings))


def test_an_item_tells_its_place_and_the_exact_commands(settings, node):
    held, config = hold(node, "PACS", 1, 1, "burned-in"), ("--config", str(settings))
    shown = run("show", str(held), *config)
    assert "reason: burned-in\n" in shown
    assert "place: (0010,0010)\n" in shown
    assert f"-> dicomnode quarantine show {held} --picture FILE\n" in shown
    assert f"-> dicomnode quarantine discard {held} --reason TEXT\n" in shown
    assert json.loads(run("show", str(held), "--json", *config))["commands"] == [
        f"dicomnode quarantine show {held} --picture FILE",
        f"dicomnode quarantine release {held} --mask LEFT,TOP,WIDTH,HEIGHT --reason TEXT",
        f"dicomnode quarantine release {held} --clean --reason TEXT",
        f"dicomnode quarantine show {held} --identify --reason TEXT",
        f"dicomnode quarantine discard {held} --reason TEXT",
    ]
    assert not list(node.audit.entries())


def test_original_uids_are_shown_with_a_reason_and_an_entry_of_the_audit_trail_alone(settings, node):
    held, config = hold(node, "PACS", 2, 7), ("--config", str(settings))
    (ds, *_) = sample_study(2, seed=7, matrix=32)
    assert "--reason is needed" in refused("show", str(held), "--identify", *config)
    assert "reason" in refused("show", str(held), "--identify", "--reason", "  ", *config)
    assert not list(node.audit.entries())
    assert str(ds.StudyInstanceUID) not in run("show", str(held), *config)
    done = start("show", str(held), "--identify", "--reason", "asked the CT", *config)
    assert str(ds.StudyInstanceUID) in done.out
    assert str(ds.SOPInstanceUID) in done.out
    assert done.err == ""
    shown = json.loads(run("show", str(held), "--identify", "--reason", "asked again", "--json", *config))
    assert [o["study_uid"] for o in shown["originals"]] == [str(ds.StudyInstanceUID)] * 2
    entries = list(node.audit.entries())
    assert [(e["event"], e["row"], e["reason"]) for e in entries] == [
        ("quarantine-identified", held, "asked the CT"),
        ("quarantine-identified", held, "asked again"),
    ]
    assert str(ds.StudyInstanceUID) not in json.dumps(entries)


def test_a_picture_is_written_only_when_asked_for_its_owner_alone_and_audited(settings, node, tmp_path):
    held, config = hold(node, "PACS", 2, 3, "burned-in"), ("--config", str(settings))
    target = tmp_path / "look.png"
    done = start("show", str(held), "--picture", str(target), "--instance", "2", *config)
    assert (done.code, "shows patient data" in done.err) == (0, True)
    assert target.stat().st_mode & 0o777 == 0o600
    job = node.quarantine.item(held).job_id
    assert job is not None
    stored = dcmread(node.spool.job(job).instances[1].path).pixel_array.astype(float)
    with Image.open(target) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32))
        seen = np.asarray(image).astype(float)
    assert np.corrcoef(seen.ravel(), stored.ravel())[0, 1] > 0.9
    assert [e["event"] for e in node.audit.entries()] == ["quarantine-pictured"]
    assert "not overwritten" in refused("show", str(held), "--picture", str(target), *config)
    assert "no such folder" in refused("show", str(held), "--picture", str(tmp_path / "absent" / "x.png"), *config)
    other = str(tmp_path / "other.png")
    assert "holds 2 objects" in refused("show", str(held), "--picture", other, "--instance", "3", *config)
    assert start("show", str(held), "--picture", other, "--frame", "2", *config).code == 1
    assert not Path(other).exists()
    assert len(list(node.audit.entries())) == 1


def test_the_audit_trail_keeps_why_something_was_discarded_or_that_nobody_said(settings, node):
    held, other, config = hold(node, "PACS", 1, 4), hold(node, "PACS", 1, 5), ("--config", str(settings))
    run("discard", str(held), "--reason", "sent again", *config)
    run("discard", str(other), *config)
    assert {node.quarantine.item(n).state for n in (held, other)} == {"discarded"}
    assert [(e["event"], e["reason"]) for e in node.audit.entries()] == [
        ("quarantine-discarded", "sent again"),
        ("quarantine-discarded", "not stated"),
    ]
    assert "discarded already" in refused("show", str(held), "--identify", "--reason", "late", *config)
    assert "commands" in json.loads(run("show", str(held), "--json", *config))


def test_files_of_index_add_are_mended_where_they_are(settings, node):
    held, config = node.quarantine.hold("truncated", "1 files", place="2.25.1"), ("--config", str(settings))
    assert "-> dicomnode index add PATH\n" in run("show", str(held), *config)
    assert "index add" in refused("show", str(held), "--identify", "--reason", "x", *config)


def test_every_reason_has_the_commands_that_the_page_tells():
    page = (Path(__file__).parents[2] / "docs" / "quarantine.md").read_text("utf-8")
    rows = {line.split("|")[1].strip(" `"): line for line in page.splitlines() if line.startswith("| `")}
    for reason, commands in SOLUTIONS.items():
        told = [c.replace(" {id}", " ID").replace("dicomnode quarantine ", "") for c in commands]
        assert all(f"`{command}`" in rows[reason] for command in told), reason
    assert set(SOLUTIONS) <= set(rows)
    assert commands_for("burned-in", 7, received=False)[0] == "dicomnode index add PATH"


class TestReleaseByHand:
    def test_masks_and_words_go_with_the_object_after_the_audit_trail_has_them(self, settings, node):
        held, config = hold(node, "PACS", 1, 21, "burned-in"), ("--config", str(settings))
        masks = ("--mask", "1,2,10,5", "--mask", "1:0,0,3,4")
        said = run("release", str(held), *masks, "--clean", "--reason", "name at the top", *config)
        detail = "objects 1 of 1; mask 1,2,10,5; mask 1:0,0,3,4; no other text that identifies"
        assert detail in said
        (entry,) = node.audit.entries()
        assert (entry["event"], entry["row"]) == ("quarantine-released", held)
        assert (entry["reason"], entry["detail"]) == ("name at the top", detail)
        assert entry["actor"].startswith("command:")
        (job,) = node.spool.jobs(JobState.QUEUED)
        (instance,) = job.instances
        assert ByHand.from_text(instance.by_hand) == ByHand(
            (parse_mask("1,2,10,5"), parse_mask("1:0,0,3,4")), no_text=True
        )
        assert node.quarantine.item(held).state == "released"
        assert "released already" in refused("release", str(held), *masks, "--reason", "again", *config)

    def test_of_several_objects_those_that_were_looked_at_go_on_and_the_others_stay(self, settings, node):
        held, config = hold(node, "PACS", 4, 22, "burned-in"), ("--config", str(settings))
        job = node.quarantine.item(held).job_id
        assert job is not None
        ids = [i.id for i in node.spool.job(job).instances]
        mask = ("--mask", "0,0,5,5", "--reason", "x")
        assert "holds 4 objects: say with --instance" in refused("release", str(held), *mask, *config)
        for wrong in ("0", "5", "2-1", "x", "1,,2", "1-5"):
            assert "holds 4 objects" in refused("release", str(held), *mask, "--instance", wrong, *config)
        assert not list(node.audit.entries())
        assert "2 objects stay held" in run("release", str(held), *mask, "--instance", "1,3", *config)
        (first,) = node.spool.jobs(JobState.QUEUED)
        assert [(i.id, bool(i.by_hand)) for i in first.instances] == [(ids[0], True), (ids[2], True)]
        assert [i.id for i in node.spool.job(job).instances] == [ids[1], ids[3]]
        assert (node.quarantine.item(held).state, node.spool.job(job).state) == ("held", JobState.QUARANTINED)
        run("release", str(held), *mask, "--instance", "1-2", *config)
        assert (node.quarantine.item(held).state, node.spool.job(job).state) == ("released", JobState.DONE)

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            (("--mask", "0,0,5,5"), "--reason is needed"),
            (("--clean",), "--reason is needed"),
            (("--clean", "--reason", "  "), "--reason is needed"),
            (("--instance", "1", "--reason", "x"), "go with --mask or --clean"),
            (("--mask", "0,0,33,5", "--reason", "x"), "32 columns and 32 rows"),
            (("--mask", "30,30,2,3", "--reason", "x"), "leaves the image"),
            (("--mask", "0,0,0,5", "--reason", "x"), "no area"),
            (("--mask", "a,0,1,5", "--reason", "x"), "a mask is LEFT,TOP"),
            (("--mask", "2:0,0,1,5", "--reason", "x"), "one frame"),
            (("--mask", "0,0,5,5", "--reason", "x" * 201), "at most 200 characters"),
            (("--reason", "x", *("--mask", "0,0,5,5") * 51), "at most 50 masks"),
        ],
    )
    def test_what_is_wrong_is_refused_in_one_line_and_nothing_happens(self, settings, node, arguments, why):
        held = hold(node, "PACS", 1, 23, "burned-in")
        assert why in refused("release", str(held), *arguments, "--config", str(settings))
        assert node.quarantine.item(held).state == "held"
        assert not node.spool.jobs(JobState.QUEUED)
        assert not list(node.audit.entries())

    @pytest.mark.parametrize(
        ("reason", "option", "why"),
        [
            ("truncated", ("--mask", "0,0,5,5"), "--mask is for what pixels show"),
            ("audit", ("--mask", "0,0,5,5"), "held as audit"),  # its place is a tag
            ("mixed-patients", ("--clean",), "--clean is for what pixels show"),
            ("recognizable-face", ("--mask", "0,0,5,5"), "a face is not masked"),
        ],
    )
    def test_other_reasons_are_not_about_text_in_pixels(self, settings, node, reason, option, why):
        held = hold(node, "PACS", 1, 24, reason)
        assert why in refused("release", str(held), *option, "--reason", "x", "--config", str(settings))

    def test_what_the_audit_could_read_is_masked_and_not_talked_away(self, settings, node):
        job = node.spool.claim(receive(node.spool, sample_study(1, seed=25, matrix=32)))
        assert job is not None
        node.spool.set_job_state(job, JobState.QUARANTINED)
        held = node.quarantine.hold("audit", "a name can be read", place="pixel data", job_id=job)
        config = ("--config", str(settings))
        assert "mask it" in refused("release", str(held), "--clean", "--reason", "x", *config)
        run("release", str(held), "--mask", "0,0,5,5", "--reason", "x", *config)

    def test_a_face_is_said_not_to_be_there_and_an_earlier_mask_stays(self, settings, node):
        config = ("--config", str(settings))
        held = hold(node, "PACS", 1, 26, "burned-in")
        run("release", str(held), "--mask", "0,0,5,5", "--reason", "x", *config)
        (job,) = node.spool.jobs(JobState.QUEUED)
        node.spool.set_job_state(job.id, JobState.QUARANTINED)
        face = node.quarantine.hold("recognizable-face", "a face", job_id=job.id)
        assert "no face" in run("release", str(face), "--clean", "--reason", "brain only", *config)
        (job,) = node.spool.jobs(JobState.QUEUED)
        assert ByHand.from_text(job.instances[0].by_hand) == ByHand((parse_mask("0,0,5,5"),), no_face=True)

    def test_the_word_that_nothing_else_identifies_and_further_masks_leave_what_was_masked_masked(self, settings, node):
        config = ("--config", str(settings))
        held = hold(node, "PACS", 1, 29, "burned-in")
        run("release", str(held), "--mask", "0,0,5,5", "--reason", "the name", *config)
        for option, masks, word in (
            (("--clean",), ["0,0,5,5"], "objects 1 of 1; earlier masks stay; no other text that identifies"),
            (("--mask", "9,9,5,5"), ["0,0,5,5", "9,9,5,5"], "objects 1 of 1; earlier masks stay; mask 9,9,5,5"),
        ):
            (job,) = node.spool.jobs(JobState.QUEUED)
            node.spool.set_job_state(job.id, JobState.QUARANTINED)
            again = node.quarantine.hold("burned-in", "still", job_id=job.id)
            said = run("release", str(again), *option, "--reason", "the rest is the scale", *config)
            assert f"released: {word}; a running node" in " ".join(said.split())
            (job,) = node.spool.jobs(JobState.QUEUED)
            decided = ByHand.from_text(job.instances[0].by_hand)
            assert decided == ByHand(tuple(map(parse_mask, masks)), no_text="--clean" in option)

    @pytest.mark.parametrize("by_hand", [("--mask", "0,0,5,5", "--reason", "x"), ()])
    def test_a_release_that_was_killed_halfway_is_finished_and_not_done_twice(self, settings, node, by_hand):
        held, config = hold(node, "PACS", 1, 30, "burned-in"), ("--config", str(settings))
        job = node.quarantine.item(held).job_id
        assert job is not None
        ids = [i.id for i in node.spool.job(job).instances]
        node.spool.release(job, dict.fromkeys(ids, NOTHING.as_text())) if by_hand else node.spool.requeue(job)
        assert "released already" in run("release", str(held), *by_hand, *config)
        assert node.quarantine.item(held).state == "released"
        assert [[i.id for i in queued.instances] for queued in node.spool.jobs(JobState.QUEUED)] == [ids]
        assert not list(node.audit.entries())

    @pytest.mark.parametrize("by_hand", [("--mask", "0,0,5,5", "--reason", "x"), ()])
    @pytest.mark.parametrize("state", [JobState.RUNNING, JobState.DISCARDED])
    def test_what_is_not_held_in_the_spool_is_not_released(self, settings, node, by_hand, state):
        held = hold(node, "PACS", 1, 31, "burned-in")
        job = node.quarantine.item(held).job_id
        assert job is not None
        node.spool.set_job_state(job, state)
        line = refused("release", str(held), *by_hand, "--config", str(settings))
        assert f"the spool has its objects as {state.value}" in line
        assert not list(node.audit.entries())
        assert not node.spool.jobs(JobState.QUEUED)
        assert node.quarantine.item(held).state == "held"

    @pytest.mark.parametrize("by_hand", [("--mask", "0,0,5,5", "--reason", "x"), ()])
    def test_an_item_whose_objects_are_gone_is_not_released(self, settings, node, by_hand):
        held = hold(node, "PACS", 1, 32, "burned-in")
        job = node.quarantine.item(held).job_id
        assert job is not None
        node.spool.remove_job_files(job)
        assert "holds no objects" in refused("release", str(held), *by_hand, "--config", str(settings))
        assert not list(node.audit.entries())
        assert not node.spool.jobs(JobState.QUEUED)

    def test_what_nobody_can_look_at_is_not_released_by_hand(self, settings, node):
        (ds,) = sample_study(1, seed=27, matrix=32)
        ds.BitsAllocated = 13
        job = node.spool.claim(receive(node.spool, [ds]))
        assert job is not None
        node.spool.set_job_state(job, JobState.QUARANTINED)
        held = node.quarantine.hold("burned-in", "x", job_id=job)
        line = refused("release", str(held), "--clean", "--reason", "x", "--config", str(settings))
        assert "cannot be decoded" in line

    def test_decisions_go_with_the_originals(self, settings, node):
        held = hold(node, "PACS", 1, 28, "burned-in")
        run("release", str(held), "--mask", "0,0,5,5", "--reason", "x", "--config", str(settings))
        (job,) = node.spool.jobs(JobState.QUEUED)
        node.spool.remove_job_files(job.id)
        with closing(sqlite3.connect(node.settings.identified_dir / "spool.sqlite3")) as db:
            assert db.execute("SELECT count(*) FROM decisions").fetchone() == (0,)
