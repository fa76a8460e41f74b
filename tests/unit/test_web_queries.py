"""Queries from the browser: uploaded, de-identified first, answered as the command answers, kept for a while, gone."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
from fastapi import FastAPI
from PIL import Image
from pydicom.data import get_testdata_file
from starlette.requests import ClientDisconnect, Request
from starlette.testclient import TestClient
from workflow_samples import rows, slice_picture

from dicomnode.node import Node
from dicomnode.testing import sample_repository, sample_study, write_study
from dicomnode.web.access import LOCAL, Principal
from dicomnode.web.api import queries as queries_api
from dicomnode.web.api.queries import _Routes, router
from dicomnode.web.options import WebOptions
from dicomnode.workflow.asking import ask, search
from dicomnode.workflow.ingest import add_paths
from dicomnode.workflow.uploads import Uploads

CASES = 4
POST = "/api/v1/queries"
WAIT_S = 60.0
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def node(make_node, tmp_path_factory) -> Node:
    folder = tmp_path_factory.mktemp("node")
    node = make_node(folder)
    findings = sample_repository(folder / "studies", CASES, slices=2, matrix=64)
    add_paths(node.context, [folder / "studies"], findings)
    return node


class Site:
    """An application of these routes alone, and who asks."""

    def __init__(self, node: Node, **options) -> None:
        self.node = node
        self.who = LOCAL
        folder = f"uploads-{next(NUMBERS)}"  # in a node there is one
        self.uploaded, self.kept = node.settings.identified_dir / folder, node.data_dir / "work" / folder
        self.uploads = Uploads(
            lambda: node.context,
            self.uploaded,
            self.kept,
            audit=node.audit,
            **({"max_bytes": 8 << 20} | options),
        )
        self.app = FastAPI(openapi_url="/api/openapi.json")

        @self.app.middleware("http")
        async def _principal(request: Request, call_next):
            request.state.principal = self.who
            return await call_next(request)

        self.app.include_router(router(self, WebOptions()))
        self.client = TestClient(self.app)

    @property
    def queries(self) -> Uploads:
        return self.uploads

    def post(self, *parts: bytes | Path, **fields):
        sent = [
            ("file", (f"SECRET-{n}.dcm", p if isinstance(p, bytes) else p.read_bytes())) for n, p in enumerate(parts)
        ]
        return self.client.post(POST, files=sent, data=fields)

    def ended(self, upload_id: str) -> dict:
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            state = self.client.get(f"{POST}/{upload_id}").json()
            if state.get("state") in ("done", "failed"):
                return state
            time.sleep(0.02)
        raise AssertionError(f"not answered in {WAIT_S} s: {state}")

    def asked(self, *parts: bytes | Path, **fields) -> dict:
        answer = self.post(*parts, **fields)
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"{POST}/{answer.json()['id']}"
        return self.ended(answer.json()["id"])

    def left(self) -> list[str]:
        return [p.name for p in self.uploaded.rglob("*")]


@contextmanager
def opened(node: Node, **options) -> Iterator[Site]:
    site = Site(node, **options)
    try:
        yield site
    finally:
        site.uploads.close()


@pytest.fixture(scope="module")
def shared_site(node) -> Iterator[Site]:
    with opened(node) as site:
        yield site


@pytest.fixture
def site(shared_site) -> Site:
    shared_site.who = LOCAL
    return shared_site


@pytest.fixture
def study(tmp_path) -> list[Path]:
    return write_study(sample_study(2, matrix=64, patient_id="ASKING-4711", seed=60), tmp_path / "study")


@pytest.fixture
def picture() -> bytes:
    return png(np.asarray(slice_picture()))


def png(pixels: np.ndarray, kind: str = "PNG", **how) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return buffer.getvalue()


def zipped(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def ranking(answer: dict) -> list[tuple]:
    return [(c["rank"], c["study_uid"], c["similarity"], c["findings"]) for c in answer["cases"]]


class TestAnswers:
    def test_a_study_is_answered_as_the_command_answers_it(self, site, node, study):
        done = site.asked(*study, k=3)
        wanted = ask(node.context, study[0].parent, 3).as_json()
        assert (done["state"], done["stage"], done["progress"], done["error"]) == ("done", "done", 1.0, None)
        assert ranking(done) == ranking(wanted)
        assert [len(c["matches"]) for c in done["cases"]] == [len(c["matches"]) for c in wanted["cases"]]
        same = ("query", "model_id", "verdict", "reason", "p", "no_similar_case", "calibrated", "searched", "search")
        assert {k: done[k] for k in same} == {k: wanted[k] for k in same}

    def test_a_picture_is_answered_as_the_command_answers_it(self, site, node, picture, tmp_path):
        (tmp_path / "a.png").write_bytes(picture)
        done = site.asked(picture)
        assert ranking(done) == ranking(ask(node.context, tmp_path / "a.png", 10).as_json())
        assert done["query"] == {"kind": "image", "modality": "", "slices": 1, "series": []}

    def test_a_zip_of_a_study_is_that_study(self, site, study):
        archive = zipped(
            {"DICOMDIR": b"no", "../../../etc/evil.dcm": study[0].read_bytes(), "deep/b": study[1].read_bytes()}
        )
        done = site.asked(archive, k=3)
        assert ranking(done) == ranking(site.asked(*study, k=3))
        assert done["skipped"] == {"not DICOM": 1}

    def test_junk_beside_a_study_is_skipped_and_counted(self, site, study, picture):
        done = site.asked(*study, b"readme", b"", picture, study[0])
        assert done["skipped"] == {
            "not DICOM": 1,
            "empty": 1,
            "picture beside a study": 1,
            "the same instance again": 1,
        }
        assert done["query"]["slices"] == 2

    def test_the_slices_of_the_query_have_names_of_their_own(self, site, study):
        done = site.asked(*study)
        assert {m["query_instance"] for c in done["cases"] for m in c["matches"]} <= {"slice-1", "slice-2"}

    def test_the_patients_own_cases_are_left_out(self, site, node, tmp_path):
        known = write_study(sample_study(2, matrix=64, patient_id="PHANTOM-00-0001", seed=61), tmp_path)
        mine = node.vault.pseudonym_for("", "PHANTOM-00-0001", create=False)
        done = site.asked(*known)
        assert mine is not None
        assert len(done["cases"]) == CASES - 1
        assert mine not in json.dumps(done)

    def test_words_leave_only_the_cases_that_have_them(self, site, picture):
        done = site.asked(picture, text=" nodule\t ")
        assert [c["findings"][0]["display"] for c in done["cases"]] == ["Nodule"]
        assert done["query"]["text"] == "nodule"

    def test_a_code_leaves_only_the_cases_that_have_it(self, site, picture):
        (case,) = site.asked(picture, text="nodule")["cases"]
        found = site.asked(picture, text=case["findings"][0]["code"])["cases"]
        assert [c["study_uid"] for c in found] == [case["study_uid"]]

    def test_words_that_no_case_has_give_an_empty_list(self, site, picture):
        done = site.asked(picture, text="nothing-has-this")
        assert (done["state"], done["cases"]) == ("done", [])

    def test_what_may_show_text_fails_with_its_reason(self, site, tmp_path):
        images = write_study(sample_study(1, matrix=64, BurnedInAnnotation="YES"), tmp_path)
        failed = site.asked(*images)
        assert (failed["state"], failed["error"]["code"]) == ("failed", "burned-in")
        assert "marked as having text" in failed["error"]["detail"]
        assert "cases" not in failed

    def test_a_cut_off_object_fails_with_its_reason(self, site, study):
        failed = site.asked(study[0].read_bytes()[:-100])
        assert (failed["state"], failed["error"]["code"]) == ("failed", "truncated")

    def test_images_that_cannot_be_used_are_answered_as_not_searchable(self, site, tmp_path):
        images = sample_study(1, matrix=64, RescaleSlope=None, RescaleIntercept=None)
        done = site.asked(*write_study(images, tmp_path))
        assert (done["state"], done["verdict"], done["cases"]) == ("done", "not-searchable", [])
        assert done["reason"]

    def test_whatever_object_comes_is_answered_or_refused_with_a_reason(self, site):
        """A fifth of pydicom's own test files: codecs, kinds of objects, damage."""
        found = sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*"))
        small = [p for p in found if p.is_file() and p.stat().st_size < 1_000_000][::5]
        outcomes = set()
        for path in small:
            posted = site.post(path)
            if posted.status_code == 202:
                ended = site.ended(posted.json()["id"])
                outcomes.add(ended["error"]["code"] if ended["error"] else ended["verdict"])
            else:
                assert 400 <= posted.status_code < 500, path.name
                outcomes.add(posted.json()["code"])
        assert outcomes & {"error", "deid", "audit", "unusable-image"} == set()
        assert {"repository-too-small", "not-searchable", "no-image"} <= outcomes
        assert site.left() == []

    def test_frames_of_one_object_are_slices_of_their_own(self, site):
        path = get_testdata_file("emri_small.dcm", download=False)
        assert path is not None, "pydicom-data is not installed"
        done = site.asked(Path(path))
        slices = site.uploads.result(done["id"]).slices
        assert [(s.name, s.frame) for s in slices] == [(f"slice-{n + 1}", n) for n in range(10)]
        assert len({s.path for s in slices}) == 1


class TestWhatStays:
    def test_nothing_reaches_catalogue_archive_index_and_vault(self, site, node, study, picture):
        before = (rows(node), node.vault.status().patients, sorted(p for p in (node.data_dir / "archive").rglob("*")))
        site.asked(*study)
        site.asked(picture)
        now = (rows(node), node.vault.status().patients, sorted(p for p in (node.data_dir / "archive").rglob("*")))
        assert now == before

    def test_the_uploaded_bytes_are_gone_once_answered(self, site, study):
        site.asked(*study)
        assert site.left() == []

    def test_what_is_kept_is_de_identified(self, site, node, study):
        done = site.asked(*study)
        result = site.uploads.result(done["id"])
        assert [s.name for s in result.slices] == ["slice-1", "slice-2"]
        kept = [s.path for s in result.slices]
        assert all(p.is_relative_to(site.kept / done["id"]) for p in kept)
        assert all(b"ASKING-4711" not in p.read_bytes() for p in kept)
        assert sorted(kept[0].parent.iterdir()) == sorted(kept)
        assert kept[0].parent.stat().st_mode & 0o077 == 0

    def test_no_metadata_of_a_picture_is_kept(self, site):
        exif = Image.Exif()
        exif[0x010E] = "SECRET^NAME"
        exif[0x0112] = 6  # turned by a quarter
        pixels = np.asarray(slice_picture(size=(160, 120))).copy()
        pixels[:10, :10] = 200  # a mark in the corner shows which way up it is kept
        done = site.asked(png(pixels, "JPEG", exif=exif, comment=b"SECRET-COMMENT"))
        (kept,) = site.uploads.result(done["id"]).slices
        assert kept.picture
        assert b"SECRET" not in kept.path.read_bytes()
        with Image.open(kept.path) as image:
            assert (image.size, image.mode, image.info) == ((120, 160), "L", {})
            assert image.getpixel((115, 4)) > 150 > image.getpixel((4, 155))

    def test_a_kept_query_can_be_asked_again_with_another_k(self, site, node, study):
        done = site.asked(*study, k=1)
        result = site.uploads.result(done["id"])
        again = search(node.context, result.question, 3)
        assert ranking(again.as_json()) == ranking(site.asked(*study, k=3))
        assert {m.query_instance for c in again.cases for m in c.matches} <= {"slice-1", "slice-2"}

    def test_an_answered_query_expires(self, node, picture):
        with opened(node, minutes=0.5 / 60) as site:
            done = site.asked(picture)
            kept = site.kept / done["id"]
            assert kept.is_dir()
            time.sleep(0.6)
            assert site.client.get(f"{POST}/{done['id']}").status_code == 404
            assert site.uploads.result(done["id"]) is None
            assert not kept.exists()

    def test_the_start_sweeps_what_a_killed_process_left(self, node):
        with opened(node) as site:
            for folder in (site.uploaded, site.kept):
                left = folder / ("0" * 32)
                left.mkdir(parents=True)
                (left / "0").write_bytes(b"SECRET")
            site.uploads = Uploads(
                lambda: node.context, site.uploaded, site.kept, audit=node.audit, max_bytes=site.uploads.max_bytes
            )
            assert site.left() == []
            assert list(site.kept.glob("*")) == []
            assert site.client.get(f"{POST}/{'0' * 32}").status_code == 404

    def test_who_asked_is_in_the_audit_trail(self, site, node, picture):
        before = len(list(node.audit.entries()))
        site.who = Principal("ana")
        site.asked(picture)
        (entry,) = list(node.audit.entries())[before:]
        assert (entry["event"], entry["actor"]) == ("query-asked", "ana")


class Held:
    """A context that waits until it is let go: queries stay queued or running."""

    def __init__(self, node: Node) -> None:
        self.node, self.go = node, threading.Event()

    def __call__(self):
        assert self.go.wait(WAIT_S)
        return self.node.context


class TestQueue:
    def test_a_full_queue_says_when_to_come_again(self, node, picture):
        with opened(node, depth=2) as site:
            held = Held(node)
            site.uploads._context = held
            ids = [site.post(picture).json()["id"] for _ in range(2)]
            refused = site.post(picture)
            assert (refused.status_code, refused.json()["code"]) == (429, "busy")
            assert int(refused.headers["retry-after"]) > 0
            assert len(site.left()) == 2 * 2, "nothing of the third"
            held.go.set()
            assert [site.ended(i)["state"] for i in ids] == ["done", "done"]
            assert site.asked(picture)["state"] == "done"

    @pytest.mark.parametrize("place", [0, 1], ids=["running", "queued"])
    def test_a_query_can_be_taken_back_before_it_is_answered(self, node, picture, place):
        with opened(node) as site:
            site.asked(picture)  # the thread runs
            held = Held(node)
            site.uploads._context = held
            ids = [site.post(picture).json()["id"] for _ in range(2)]
            while site.client.get(f"{POST}/{ids[0]}").json()["state"] != "running":
                time.sleep(0.01)
            assert site.client.delete(f"{POST}/{ids[place]}").status_code == 204
            assert site.client.get(f"{POST}/{ids[place]}").status_code == 404
            assert ids[place] not in site.left()
            held.go.set()
            assert site.ended(ids[1 - place])["state"] == "done"
            assert not (site.kept / ids[place]).exists()

    def test_an_answered_query_can_be_taken_back(self, site, node, study):
        done = site.asked(*study)
        assert site.client.delete(f"{POST}/{done['id']}").status_code == 204
        assert site.client.delete(f"{POST}/{done['id']}").status_code == 404
        assert site.uploads.result(done["id"]) is None
        assert not (site.kept / done["id"]).exists()

    def test_a_fault_of_ours_is_told_without_its_text_and_the_next_is_answered(self, node, picture, capsys):
        with opened(node) as site:
            ours = site.uploads._context

            def broken():
                raise RuntimeError("SECRET text")

            site.uploads._context = broken
            failed = site.asked(picture)
            assert (failed["state"], failed["error"]["code"]) == ("failed", "error")
            assert "SECRET" not in json.dumps(failed)
            site.uploads._context = ours
            assert site.asked(picture)["state"] == "done"


class TestEvents:
    def test_each_change_is_told_in_order_and_the_end_ends_it(self, site, study):
        upload_id = site.post(*study).json()["id"]
        told = site.client.get(f"{POST}/{upload_id}/events")
        assert told.headers["content-type"].startswith("text/event-stream")
        events = [e.split("\n") for e in told.text.strip().split("\n\n")]
        assert {lines[0] for lines in events} == {"event: state"}
        states = [json.loads(lines[1].removeprefix("data: ")) for lines in events]
        progress = [s["progress"] for s in states]
        assert progress == sorted(progress)
        assert states[-1] == site.ended(upload_id)
        order = ["received", "de-identified", "embedded", "searched", "done"]
        assert [order.index(s["stage"]) for s in states] == sorted(order.index(s["stage"]) for s in states)

    def test_the_events_of_a_query_that_is_taken_back_end(self, node, picture):
        with opened(node) as site:
            held = Held(node)
            site.uploads._context = held
            upload_id = site.post(picture).json()["id"]
            threading.Timer(0.5, site.client.delete, (f"{POST}/{upload_id}",)).start()
            told = site.client.get(f"{POST}/{upload_id}/events")
            assert "done" not in told.text
            held.go.set()

    def test_a_query_is_followed_by_so_many_at_once_and_then_by_others(self, node, picture, monkeypatch):
        monkeypatch.setattr(queries_api, "STREAMS", 1)
        with opened(node) as site:
            held = Held(node)
            site.uploads._context = held
            upload_id = site.post(picture).json()["id"]
            path = f"{POST}/{upload_id}/events"
            told = []
            first = threading.Thread(target=lambda: told.append(site.client.get(path)))
            first.start()
            time.sleep(0.5)
            refused = site.client.get(path)
            held.go.set()
            first.join(WAIT_S)
            assert (refused.status_code, refused.json()["code"]) == (429, "too-many-requests")
            assert refused.headers["retry-after"]
            assert '"done"' in told[0].text
            assert site.client.get(path).status_code == 200


class TestWhoMay:
    def test_nobody_and_the_holder_of_a_link_may_not(self, site, picture):
        upload_id = site.asked(picture)["id"]
        for who, status in (
            (None, 401),
            (Principal("link", scope="f" * 32), 403),
            (Principal("link", scope=upload_id), 403),
        ):
            site.who = who
            assert site.post(picture).status_code == status
            for path in (f"{POST}/{upload_id}", f"{POST}/{upload_id}/events"):
                assert site.client.get(path).status_code == status
            assert site.client.delete(f"{POST}/{upload_id}").status_code == status

    def test_a_query_is_seen_by_who_asked_it_and_by_administrators(self, site, picture):
        site.who = Principal("ana")
        upload_id = site.asked(picture)["id"]
        site.who = Principal("ben")
        for path in (f"{POST}/{upload_id}", f"{POST}/{upload_id}/events"):
            assert site.client.get(path).status_code == 404
        assert site.client.delete(f"{POST}/{upload_id}").status_code == 404
        site.who = Principal("root", admin=True)
        assert site.client.get(f"{POST}/{upload_id}").status_code == 200

    def test_the_service_tells_whose_a_result_is(self, site, picture):
        site.who = Principal("ana")
        assert site.uploads.result(site.asked(picture)["id"]).owner == "ana"


class TestRefusals:
    @pytest.mark.parametrize(
        ("parts", "fields", "status", "code"),
        [
            ([b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>"], {}, 415, "wrong-kind"),
            ([b"<!doctype html><script>alert(1)</script>"], {}, 415, "wrong-kind"),
            ([b"GIF89a" + bytes(40)], {}, 415, "wrong-kind"),
            ([b"%PDF-1.7"], {}, 415, "wrong-kind"),
            ([b""], {}, 422, "empty"),
            ([b"x"], {"k": "0"}, 422, "bad-k"),
            ([b"x"], {"k": "201"}, 422, "bad-k"),
            ([b"x"], {"k": "01009999999"}, 422, "bad-k"),
            ([b"x"], {"k": "²"}, 422, "bad-k"),
            ([b"x"], {"k": "ten"}, 422, "bad-k"),
            ([b"x"], {"text": "a" * 201}, 422, "bad-text"),
            ([b"x"], {"text": "a\x00b"}, 422, "bad-text"),
            ([b"x"], {"text": "a" * 5000}, 413, "too-large"),
            ([bytes(9 << 20)], {}, 413, "too-large"),
        ],
    )
    def test_one_line_and_nothing_left(self, site, parts, fields, status, code):
        refused = site.post(*parts, **fields)
        assert (refused.status_code, refused.json()["code"]) == (status, code)
        assert refused.headers["content-type"] == "application/problem+json"
        assert "SECRET" not in refused.text
        assert site.left() == []

    def test_two_studies_two_patients_and_two_pictures(self, site, tmp_path, picture):
        two = [write_study(sample_study(1, matrix=64, patient_id=f"P{n}"), tmp_path / str(n))[0] for n in (1, 2)]
        images = sample_study(2, matrix=64, patient_id="SECRET-1")
        images[1].PatientID = "SECRET-2"
        mixed = write_study(images, tmp_path / "mixed")
        for parts, code in (
            (two, "several-studies"),
            (mixed, "mixed-patients"),
            ([picture, picture], "several-pictures"),
        ):
            refused = site.post(*parts)
            assert (refused.status_code, refused.json()["code"]) == (422, code)
            assert "SECRET" not in refused.text
            assert site.left() == []

    def test_a_body_that_is_no_form(self, site):
        refused = site.client.post(POST, content=b"{}", headers={"Content-Type": "application/json"})
        assert (refused.status_code, refused.json()["code"]) == (415, "not-multipart")
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        for body in (b"", b"--x\r\nContent-Dispo", b"nonsense"):
            refused = site.client.post(POST, content=body, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (422, "truncated")
        assert site.left() == []

    def test_a_form_without_a_file(self, site):
        refused = site.client.post(POST, data={"k": "3"}, files={"other": b"x"})
        assert (refused.status_code, refused.json()["code"]) == (422, "empty")

    def test_a_refused_upload_is_read_to_its_end_so_that_a_browser_shows_why(self, node):
        with opened(node, max_bytes=1 << 20) as site:
            read = []

            async def sent() -> dict:
                read.append(1)
                return {"type": "http.request", "body": bytes(1 << 16), "more_body": len(read) < 64}

            headers = [(b"content-type", b"multipart/form-data; boundary=x"), (b"content-length", b"999999999")]
            scope = {"type": "http", "method": "POST", "path": POST, "headers": headers, "query_string": b""}
            refused = asyncio.run(_Routes(site.uploads).post(Request(scope, sent), LOCAL))
            assert (refused.status_code, len(read)) == (413, 64)
            scope["headers"] = [*headers, (b"expect", b"100-continue")]
            assert asyncio.run(_Routes(site.uploads).post(Request(scope, sent), LOCAL)).status_code == 413
            assert len(read) == 64

    def test_too_many_files(self, node):
        with opened(node) as site:
            site.uploads.max_files = 3
            refused = site.post(*[b"x"] * 4)
            assert (refused.status_code, refused.json()["code"]) == (413, "too-many-files")
            assert site.left() == []

    def test_a_sender_that_goes_away_leaves_nothing(self, node):
        start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nSECRET'
        sent = [{"type": "http.request", "body": start, "more_body": True}, {"type": "http.disconnect"}]
        headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        with opened(node, depth=1) as site:
            request = Request(
                {"type": "http", "method": "POST", "path": POST, "headers": headers, "query_string": b""},
                lambda: asyncio.sleep(0, sent.pop(0)),
            )
            routes = _Routes(site.uploads)
            with pytest.raises(ClientDisconnect):
                asyncio.run(routes.post(request, LOCAL))
            assert site.left() == []
            assert site.post(b"x").status_code == 415, "its place in the queue is free again"
