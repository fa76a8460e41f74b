"""All a viewer shows of one result, from a real node: its cases, how they lie, their images, and nobody else's."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image
from pydicom import dcmread
from starlette.routing import Route
from starlette.testclient import TestClient
from workflow_samples import job_of, pooled_pack, process, slice_picture

from dicomnode.archive import schema as tables
from dicomnode.config import Auth
from dicomnode.domain import Finding, FindingStatus, Role
from dicomnode.errors import PackError
from dicomnode.models.preprocess import body_square, mask_on_frame, prepare_dicom
from dicomnode.testing import sample_repository, sample_study, write_study
from dicomnode.web.access import Principal
from dicomnode.web.api import schema
from dicomnode.web.app import create_app
from dicomnode.web.options import WebOptions
from dicomnode.webside.services import WebSide
from dicomnode.workflow.ingest import add_paths
from dicomnode.workflow.labels import add_labels
from dicomnode.workflow.withdrawal import remove_studies

BASE = "http://127.0.0.1:8080"
CASES, SLICES = 9, 4
XSS = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
SIDE = 160  # of slices that the network sees a part of
ASKED = ("deid", "archive", "embed", "index", "retrieve")


class Site:
    """A node's application, and an answer of it."""

    def __init__(self, node, job: int) -> None:
        self.node = node
        self.stored = node.answers.by_id(node.spool.job(job).answer_id)
        self.side = WebSide(node, dict)
        self.app = create_app(self.side, WebOptions(), results=self.side.results, queries=self.side.queries)
        self.client = TestClient(self.app, base_url=BASE, raise_server_exceptions=False)

    def get(self, path: str = "", *, of: str = "", headers=None, **query):
        query = {k.rstrip("_"): v for k, v in query.items()}
        return self.client.get(f"/api/v1/results/{of or self.stored.token}{path}", params=query, headers=headers)

    def graph(self, **query) -> dict:
        response = self.get("/graph", **query)
        assert response.status_code == 200, response.text
        return response.json()

    def handle(self, rank: int = 1) -> str:
        return self.graph()["nodes"][rank]["id"]

    def audit(self) -> list[dict]:
        return list(self.node.audit.entries())


def fill(node, folder, patients: int = CASES, slices: int = SLICES) -> None:
    findings = sample_repository(folder / "studies", patients, slices=slices, matrix=64)
    add_paths(node.context, [folder / "studies"], findings)


def asked(node, *, role: Role = Role.INDEX_QUERY, patient: str = "ASKING", slices: int = SLICES, **more) -> int:
    job = job_of(node, sample_study(slices, matrix=64, patient_id=patient, seed=77, **more), role=role)
    process(node, job, ASKED)
    return job


@pytest.fixture(scope="module")
def site(make_node, tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("node")
    node = make_node(folder)
    fill(node, folder)
    made = Site(node, asked(node))
    yield made
    made.side.close()


@pytest.fixture(scope="module")
def small(make_node, tmp_path_factory):
    """The folder of a node with three cases and two answers, and the jobs of these."""
    folder = tmp_path_factory.mktemp("small")
    node = make_node(folder)
    fill(node, folder, 3, 2)
    jobs = [asked(node, role=Role.QUERY, patient=p, finding=f, slices=2) for p, f in (("A", None), ("B", "nodule"))]
    return folder, jobs


@pytest.fixture
def copied(make_node, small, tmp_path):
    """A node of its own with what ``small`` holds: ``copied(**settings)`` and the two jobs."""
    folder, jobs = small
    shutil.copytree(folder / "var", tmp_path / "var")
    return lambda **settings: make_node(tmp_path, **settings), jobs


@pytest.fixture
def own(copied) -> Iterator[Site]:
    """A site that a test may change."""
    make, jobs = copied
    made = Site(make(), jobs[0])
    yield made
    made.side.close()


class TestResult:
    def test_it_says_the_verdict_and_how_much_was_searched(self, site):
        response = site.get()
        said = schema.Result.model_validate(response.json())
        assert said.kind == "answer"
        assert said.verdict == site.stored.answer.verdict.kind.value
        assert (said.k, said.searched) == (len(site.stored.answer.cases), CASES)
        assert said.expires == pytest.approx(site.stored.created + 30 * 86400)
        assert response.headers["cache-control"] == "no-store"

    def test_nothing_of_the_query_leaves_but_modality_and_number_of_slices(self, site):
        handle = site.handle()
        texts = [site.get(p).text for p in ("", "/graph", "/cases/query", f"/cases/{handle}", f"/cases/{handle}/why")]
        texts.append(site.get("/graph", k=5).text)
        with site.node.catalogue.engine.connect() as db:
            row = db.execute(sa.select(tables.studies).where(tables.studies.c.uid == site.stored.study_uid)).one()
        for text in texts:
            assert "2.25." not in text  # no UID at all
            assert str(site.stored.patient) not in text
            assert row.date not in text

    def test_an_unknown_id_is_404_and_an_expired_one_410(self, own):
        for unknown in ("0" * 32, "short", "Z" * 32, "a" * 33):
            response = own.get(of=unknown)
            assert (response.status_code, response.json()["code"]) == (404, "not-found"), unknown
        with own.node.catalogue.engine.begin() as db:
            db.execute(tables.answers.update().values(created=time.time() - 31 * 86400))
        for path in ("", "/graph", "/cases/query", "/contact-sheet.png"):
            response = own.get(path)
            assert (response.status_code, response.json()["code"]) == (410, "expired")


class TestGraph:
    def test_without_parameters_it_is_exactly_the_stored_answer(self, site):
        graph = site.graph()
        schema.Graph.model_validate(graph)
        nodes = graph["nodes"][1:]
        stored = site.stored.answer.cases
        assert graph["live"] is False
        assert [(n["rank"], n["similarity"], n["subject"]) for n in nodes] == [
            (c.rank, c.similarity, c.subject) for c in stored
        ]
        assert [n["findings"] for n in nodes] == [[f.as_json() for f in c.findings] for c in stored]
        centre = graph["nodes"][0]
        assert (centre["id"], centre["rank"], centre["similarity"], centre["distance"]) == ("query", 0, 1.0, 0.0)

    def test_distance_is_one_minus_similarity_and_never_decreases_with_rank(self, site):
        for graph in (site.graph(), site.graph(k=1000), site.graph(from_=site.handle(), k=1000)):
            nodes = graph["nodes"]
            assert [n["rank"] for n in nodes] == list(range(len(nodes)))
            assert all(n["distance"] == 1 - n["similarity"] for n in nodes)
            distances = [n["distance"] for n in nodes]
            assert distances == sorted(distances)

    def test_asked_again_with_the_same_k_the_same_ranking_comes_out(self, site):
        live = site.graph(k=len(site.stored.answer.cases))
        assert live["live"] is True
        said = [(n["rank"], n["similarity"], n["subject"]) for n in live["nodes"]]
        assert said == [(n["rank"], n["similarity"], n["subject"]) for n in site.graph()["nodes"]]

    def test_k_is_how_many_cases_are_shown(self, site):
        assert len(site.graph(k=3)["nodes"]) == 4
        assert len(site.graph(k=1000)["nodes"]) == CASES + 1

    def test_each_case_is_joined_to_its_three_nearest_and_none_to_the_centre(self, site):
        graph = site.graph(k=1000)
        vectors = {}
        for i, j, distance in graph["edges"]:
            assert 1 <= i < j < len(graph["nodes"])
            assert 0 <= distance <= 2
            vectors.setdefault(i, []).append(j)
            vectors.setdefault(j, []).append(i)
        assert all(len(vectors[i]) >= 3 for i in range(1, CASES + 1))

    def test_filters_leave_only_cases_that_have_what_is_asked_for(self, site):
        nodules = site.graph(k=100, text="NODULE")["nodes"][1:]
        assert nodules
        assert all(any("nodule" in f["display"].lower() for f in n["findings"]) for n in nodules)
        unknown = site.graph(k=100, status="unknown")["nodes"][1:]
        assert {n["status"] for n in unknown} == {"unknown"}
        assert site.graph(k=100, modality="MR")["total"] == 0
        assert site.graph(k=100, modality="CT", status="present", text="27925004")["total"] == len(nodules)
        assert site.graph(k=100, text="no such words")["nodes"][1:] == []

    def test_more_like_this_starts_from_the_case_and_leaves_it_out(self, site):
        start = site.graph()["nodes"][1]
        graph = site.graph(from_=start["id"], k=100)
        assert graph["from"] == start["id"]
        assert graph["nodes"][0]["id"] == start["id"]
        assert (graph["nodes"][0]["rank"], graph["nodes"][0]["similarity"]) == (0, 1.0)
        assert start["id"] not in [n["id"] for n in graph["nodes"][1:]]
        assert len(graph["nodes"]) == CASES  # all others but the query's own patient

    def test_the_querys_own_patient_is_in_no_graph(self, site):
        own = site.stored.patient
        assert site.node.catalogue.studies_of(own)  # although the repository has it
        graphs = [site.graph(), site.graph(k=1000)]
        graphs += [site.graph(from_=n["id"], k=1000) for n in site.graph(k=1000)["nodes"][1:]]
        assert all(own not in json.dumps(graph) for graph in graphs)

    def test_a_handle_of_the_querys_own_study_would_open_nothing(self, site):
        from dicomnode.web.handles import Handles

        handles = Handles(bytes.fromhex(site.node.vault.keyed_hash("web", "cases")))
        with site.node.catalogue.engine.connect() as db:
            query = sa.select(tables.studies.c.id).where(tables.studies.c.uid == site.stored.study_uid)
            row = db.execute(query).scalar_one()
        forged = handles.make(site.stored.token, row, site.stored.study_uid)
        assert site.get(f"/cases/{forged}").status_code == 404
        assert site.get("/graph", from_=forged).status_code == 404

    def test_without_the_querys_vectors_the_stored_answer_stays_and_asking_again_is_refused(self, own):
        own.node.answers.drop_slices(time.time() + 1)
        graph = own.graph()
        assert len(graph["nodes"]) == 4
        assert graph["nodes"][0]["has_picture"] is False
        response = own.get("/graph", k=5)
        assert response.status_code == 422
        assert "no longer kept" in response.json()["detail"]
        detail = own.get(f"/cases/{own.handle()}").json()
        assert detail["best"][0]["query_frame"] is None
        assert own.get("/cases/query").json()["series"] == []

    def test_an_answer_of_another_model_is_shown_but_not_asked_again(self, own):
        with own.node.catalogue.engine.begin() as db:
            body = {**own.stored.answer.as_json(), "model_id": "sha256:other"}
            db.execute(tables.answers.update().values(model_id="sha256:other", body=body))
        assert len(own.graph()["nodes"]) == 4
        assert own.get("/graph", k=5).status_code == 409
        assert own.get("/atlas", cases=own.handle()).status_code == 200


class TestHandles:
    def test_a_handle_is_worth_nothing_in_another_result(self, own, small):
        other = own.node.answers.by_id(own.node.spool.job(small[1][1]).answer_id)
        handle = own.handle()
        assert own.get(f"/cases/{handle}").status_code == 200
        frame = f"/cases/{handle}/series/0/frames/0"
        for path in (f"/cases/{handle}", frame, f"{frame}/masks.png", f"/cases/{handle}/why"):
            assert own.get(path, of=other.token).status_code == 404
        assert own.get("/graph", of=other.token, from_=handle).status_code == 404
        theirs = own.get("/graph", of=other.token).json()["nodes"]
        assert {n["subject"] for n in theirs} == {n["subject"] for n in own.graph()["nodes"]}
        assert not {n["id"] for n in theirs[1:]} & {n["id"] for n in own.graph()["nodes"][1:]}

    @pytest.mark.parametrize("bad", ["x", "1", "-1", "a" * 40, "a" * 5000, "ñ" * 40, "=" * 40, "%2e%2e", "QUERY"])
    def test_what_is_no_handle_is_404(self, site, bad):
        assert site.get(f"/cases/{bad}").status_code == 404
        assert site.get(f"/cases/{bad}/series/0/frames/0").status_code == 404

    def test_a_changed_handle_is_404(self, site):
        handle = site.handle()
        for at in (0, 10, 39):
            changed = handle[:at] + ("A" if handle[at] != "A" else "B") + handle[at + 1 :]
            assert site.get(f"/cases/{changed}").status_code == 404

    def test_a_removed_case_is_gone_everywhere(self, own):
        case = own.graph()["nodes"][1]
        study = own.stored.answer.cases[0].study_uid
        own.get("/atlas", cases=case["id"])
        assert list((own.node.data_dir / "thumbnails").rglob(f"{study}/*.webp"))
        assert remove_studies(own.node.context, [study]).anything
        assert not list((own.node.data_dir / "thumbnails").rglob(f"{study}*"))
        for path in (f"/cases/{case['id']}", f"/cases/{case['id']}/series/0/frames/0"):
            assert own.get(path).status_code == 404
        assert case["subject"] not in own.get("/graph").text
        assert square(own.get("/atlas", cases=case["id"]).content, 0, 64) is None

    def test_an_excluded_patient_is_shown_no_more(self, own):
        case = own.graph()["nodes"][1]
        own.node.catalogue.exclude_patient(case["subject"])
        assert own.get(f"/cases/{case['id']}").status_code == 404
        for query in ({}, {"k": 100}):
            assert case["subject"] not in own.get("/graph", **query).text
        assert square(own.get("/atlas", cases=case["id"]).content, 0, 64) is None

    @pytest.mark.parametrize("gone", ["excluded", "removed"])
    def test_what_is_gone_is_on_no_page_image_or_sheet_made_before(self, own, gone):
        case = own.stored.answer.cases[0]
        page, image = f"/v/r/{own.stored.token}/plain", f"/v/r/{own.stored.token}/cases/1.png"
        sheets = ("/contact-sheet.png", "/contact-sheet.pdf")
        assert case.subject in own.client.get(page).text
        assert own.client.get(image).status_code == 200
        before = [own.get(s).content for s in sheets]
        if gone == "excluded":
            own.node.catalogue.exclude_patient(case.subject)
        else:
            assert remove_studies(own.node.context, [case.study_uid]).anything
        assert own.client.get(image).status_code == 404
        shown = own.client.get(page)
        assert shown.status_code == 200
        assert case.subject not in shown.text
        for sheet, former in zip(sheets, before, strict=True):
            again = own.get(sheet)
            assert again.status_code == 200
            assert again.content != former

    def test_a_patient_unknown_when_asked_who_came_since_is_not_led_to(self, own, tmp_path):
        assert own.stored.patient is None
        images = sample_study(2, matrix=64, patient_id="A", seed=99)
        write_study(images, tmp_path / "later")  # the follow-up, of another day
        add_paths(own.node.context, [tmp_path / "later"], {})
        mine = own.node.vault.pseudonym_for("", "A", create=False)
        assert mine is not None
        for query in ({"k": 1000}, {"k": 1000, "from_": own.handle()}, {"status": "unknown"}):
            graph = own.graph(**query)
            assert mine not in {n["subject"] for n in graph["nodes"]}, query


class TestCase:
    def test_it_has_what_the_catalogue_knows_and_its_series(self, site):
        node = site.graph()["nodes"][1]
        detail = site.get(f"/cases/{node['id']}").json()
        schema.CaseDetail.model_validate(detail)
        assert (detail["subject"], detail["rank"]) == (node["subject"], 1)
        assert (detail["modality"], detail["source"]) == ("CT", "index-add")
        (series,) = detail["series"]
        assert (series["frames"], series["rows"], series["columns"]) == (SLICES, 64, 64)
        assert [p["name"] for p in series["presets"]] == ["lung", "mediastinum", "bone", "brain"]

    def test_the_best_pairs_name_frames_that_match(self, site):
        detail = site.get(f"/cases/{site.handle()}").json()
        stored = site.stored.answer.cases[0].matches
        assert [p["similarity"] for p in detail["best"]] == [m.similarity for m in stored]
        pair = detail["best"][0]
        query = site.get("/cases/query").json()["series"][pair["query_series"]]
        assert 0 <= pair["query_frame"] < query["frames"]
        assert 0 <= pair["frame"] < detail["series"][pair["series"]]["frames"]

    def test_findings_carry_their_source_and_planted_markup_is_data(self, own):
        study = own.stored.answer.cases[0].study_uid
        planted = [Finding("SCT", "1", XSS, XSS[:64]), Finding("99LABEL", "rtl", "\u202eevil\u202c" + "x" * 200, "s")]
        own.node.catalogue.set_findings(study, planted, FindingStatus.PRESENT)
        response = own.get(f"/cases/{own.handle()}")
        assert response.headers["content-type"] == "application/json"
        assert {(f["display"], f["source"]) for f in response.json()["findings"]} == {
            (f.display, f.source) for f in planted
        }
        shown = own.graph(k=100)["nodes"][1]["findings"]
        assert XSS in [f["display"] for f in shown]


def square(webp: bytes, number: int, size: int):
    """One square of an atlas as RGBA; None where it is transparent."""
    image = Image.open(io.BytesIO(webp)).convert("RGBA")
    left, top = number % 8 * size, number // 8 * size
    cut = np.asarray(image.crop((left, top, left + size, top + size)))
    return None if cut[..., 3].max() == 0 else cut


class TestImages:
    def test_frames_are_hounsfield_units_from_the_head_down(self, site):
        case = site.stored.answer.cases[0]
        handle = site.handle()
        paths = [site.node.objects.path(k.path) for k in site.node.catalogue.known_instances(case.study_uid)]
        stored = sorted((dcmread(p) for p in paths), key=lambda ds: -ds.ImagePositionPatient[2])
        for n, ds in enumerate(stored):
            response = site.get(f"/cases/{handle}/series/0/frames/{n}")
            values = np.frombuffer(response.content, "<i2").reshape(64, 64)
            assert np.array_equal(values, ds.pixel_array * ds.RescaleSlope + ds.RescaleIntercept)
        assert site.get(f"/cases/{handle}/series/0/frames/{SLICES}").status_code == 404
        assert site.get(f"/cases/{handle}/series/1/frames/0").status_code == 404
        assert site.get(f"/cases/{handle}/series/-1/frames/0").status_code == 404
        assert site.get(f"/cases/{handle}/series/0/frames/x").status_code == 404

    def test_a_frame_the_browser_has_is_not_sent_again(self, site):
        path = f"/cases/{site.handle()}/series/0/frames/1"
        first = site.get(path)
        assert "immutable" in first.headers["cache-control"]
        assert "private" in first.headers["cache-control"]
        again = site.get(path, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        assert site.get(path.replace("/1", "/2")).headers["etag"] != first.headers["etag"]

    def test_a_rendered_frame_follows_the_window(self, site):
        path = f"/cases/{site.handle()}/series/0/frames/1.png"
        images = [
            np.asarray(Image.open(io.BytesIO(site.get(path, center=c, width=w).content)))
            for c, w in ((-600, 1500), (40, 400))
        ]
        assert images[0].shape == (64, 64)
        assert not np.array_equal(*images)
        assert site.get(path).status_code == 200
        for bad in ({"width": 0}, {"width": -5}, {"center": "nan"}, {"width": "inf"}, {"center": "x"}):
            assert site.get(path, **bad).status_code == 422

    def test_the_querys_key_slices_are_a_series_too(self, site):
        series = site.get("/cases/query").json()["series"][0]
        assert series["frames"] == SLICES
        assert len(site.get("/cases/query/series/0/frames/0").content) == 2 * 64 * 64

    def test_the_atlas_has_the_cases_in_the_order_asked_and_gaps_for_what_is_missing(self, site):
        handles = [n["id"] for n in site.graph()["nodes"]]
        response = site.get("/atlas", cases=",".join([*handles, "unknown"]), size=32)
        assert response.headers["content-type"] == "image/webp"
        image = Image.open(io.BytesIO(response.content))
        assert image.size == (256, 64)
        pictures = [square(response.content, n, 32) for n in range(len(handles) + 1)]
        assert all(p is not None for p in pictures[:-1])
        assert pictures[-1] is None
        alone = site.get("/atlas", cases=handles[2], size=128).content
        assert Image.open(io.BytesIO(alone)).size == (128, 128)
        assert Image.open(io.BytesIO(alone)).convert("L").getextrema()[1] > 100

    @pytest.mark.parametrize("bad", [{"cases": ""}, {"cases": ",,"}, {}, {"cases": "query", "size": 65}])
    def test_an_atlas_of_nothing_or_too_much_is_refused(self, site, bad):
        assert site.get("/atlas", **bad).status_code == 422
        assert site.get("/atlas", cases=",".join(["query"] * 65)).status_code == 422
        assert site.get("/atlas", cases=",".join(["query"] * 64), size=32).status_code == 200

    def test_thumbnails_are_made_when_a_study_is_indexed_and_again_where_they_are_lost(self, own):
        made = list((own.node.data_dir / "thumbnails").rglob("*.webp"))
        assert len(made) == own.node.index.store.count()
        handle = own.handle()
        before = own.get("/atlas", cases=handle).content
        for path in made:
            path.write_bytes(b"damaged")
        assert own.get("/atlas", cases=handle).content == before
        for path in (own.node.data_dir / "thumbnails").rglob("*.webp"):
            path.unlink()
        assert own.get("/atlas", cases=handle).content == before

    def test_an_image_that_is_gone_or_damaged_is_told_and_takes_nothing_else_along(self, own):
        case = own.stored.answer.cases[0]
        known = own.node.catalogue.known_instances(case.study_uid)
        own.node.objects.path(known[0].path).write_bytes(b"not DICOM")
        handle = own.handle()
        detail = own.get(f"/cases/{handle}")
        assert detail.status_code == 200
        assert detail.json()["series"][0]["frames"] == 1
        own.node.objects.path(known[1].path).unlink()
        assert own.get(f"/cases/{handle}/series/0/frames/0").status_code == 404
        assert own.get("/graph").status_code == 200


class TestLabelledPictures:
    def test_they_are_cases_with_a_series_a_thumbnail_and_reasons(self, own, tmp_path):
        rows = ["path,label,patient"]
        for n, (size, label) in enumerate((((300, 220), "COVID"), ((90, 130), "Normal"), ((224, 224), "?"))):
            slice_picture(n, size).save(tmp_path / f"{n}.png")
            rows.append(f"{n}.png,{label},p{n}")
        (tmp_path / "labels.csv").write_text("\n".join(rows))
        assert add_labels(own.node.context, tmp_path / "labels.csv").studies == 3
        nodes = {n["status"]: n for n in own.graph(k=100)["nodes"][1:] if n["modality"] == "OT"}
        assert set(nodes) == {"present", "none", "unknown"}
        assert nodes["present"]["findings"][0]["display"] == "COVID"
        wide = nodes["present"]["id"]
        detail = own.get(f"/cases/{wide}").json()
        (series,) = detail["series"]
        assert (series["rows"], series["columns"], series["window"]) == (220, 300, [127.5, 255.0])
        values = np.frombuffer(own.get(f"/cases/{wide}/series/0/frames/0").content, "<i2").reshape(220, 300)
        assert np.array_equal(values, np.asarray(Image.open(tmp_path / "0.png")))
        why = own.get(f"/cases/{wide}/why").json()
        assert why["similarity"] == pytest.approx(detail["best"][0]["similarity"], abs=1e-4)
        atlas = own.get("/atlas", cases=wide, size=128).content
        for made in (own.node.data_dir / "thumbnails").rglob("*.webp"):
            made.unlink()
        again = own.get("/atlas", cases=wide, size=128).content
        assert again == atlas
        picture = square(atlas, 0, 128)[..., 0]
        assert picture[:14].max() < 20  # not stretched
        assert picture[50:78].max() > 100


class TestWhy:
    def test_it_is_a_grid_of_falls_for_either_slice_and_kept(self, site):
        response = site.get(f"/cases/{site.handle()}/why")
        why = schema.Why.model_validate(response.json())
        assert (why.rows, why.columns, len(why.case), len(why.query[0])) == (8, 8, 8, 8)
        assert why.similarity == pytest.approx(site.stored.answer.cases[0].matches[0].similarity, abs=1e-4)
        assert np.abs(why.case).max() > 1e-4
        started = time.monotonic()
        assert site.get(f"/cases/{site.handle()}/why").json() == response.json()
        assert time.monotonic() - started < 0.5

    def test_other_frames_can_be_asked_about(self, site):
        path = f"/cases/{site.handle()}/why"
        assert site.get(path, frame=0, query_frame=SLICES - 1).status_code == 200
        assert site.get(path, frame=99).status_code == 404
        assert site.get(path, frame=-1).status_code == 422
        assert site.get("/cases/query/why").status_code == 404

    def test_those_who_ask_for_too_many_at_once_are_told_to_wait(self, own):
        results = own.side.results
        taken = [results._places.acquire(blocking=False) for _ in range(4)]
        assert all(taken)
        response = own.get(f"/cases/{own.handle()}/why")
        assert (response.status_code, response.json()["code"]) == (503, "busy")
        for _ in taken:
            results._places.release()

    def test_without_the_networks_it_is_503_and_everything_else_works(self, own, monkeypatch):
        def broken(_model_id):
            raise PackError("does not match its checksum")

        monkeypatch.setattr(own.side.results, "_embed", broken)
        response = own.get(f"/cases/{own.handle()}/why")
        assert (response.status_code, response.json()["code"]) == (503, "model-pack")
        assert own.get("/graph", k=2).status_code == 200


def values_of(site, case: str, frame: int):
    return np.frombuffer(site.get(f"/cases/{case}/series/0/frames/{frame}").content, "<i2").reshape(SIDE, SIDE)


def drawn(content: bytes):
    """Lungs and infection of a masks.png, bool [2, rows, columns]."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert set(np.unique(pixels)) <= {0, 255}
    assert not pixels[..., 2].any()
    return pixels[..., :2].transpose(2, 0, 1) > 0


@pytest.fixture(scope="module")
def outlined(make_node, tmp_path_factory, sample_pack) -> Iterator[Site]:
    """A node with a pack that outlines, and slices large enough that the network sees a part of them."""
    folder = tmp_path_factory.mktemp("outlined")
    node = make_node(folder, models={"pack": str(sample_pack)})
    add_paths(node.context, [folder / "studies"], sample_repository(folder / "studies", 2, slices=3, matrix=SIDE))
    job = job_of(node, sample_study(3, matrix=SIDE, patient_id="ASKING", seed=77, finding="consolidation"))
    process(node, job, ASKED)
    made = Site(node, job)
    yield made
    made.side.close()


class TestMasks:
    def test_a_result_says_the_dice_of_what_can_be_outlined(self, outlined, site):
        said = schema.Result.model_validate(outlined.get().json())
        assert said.outlines == schema.Outlines(lungs=0.9, infection=None)
        assert outlined.get(f"/cases/{outlined.handle()}").json()["series"][0]["outlined"] is True
        assert outlined.get("/cases/query").json()["series"][0]["outlined"] is True

    def test_they_are_those_of_the_network_laid_on_the_frame(self, outlined):
        case = outlined.stored.answer.cases[0]
        paths = [outlined.node.objects.path(k.path) for k in outlined.node.catalogue.known_instances(case.study_uid)]
        ordered = sorted(paths, key=lambda p: -dcmread(p).ImagePositionPatient[2])
        for n, path in enumerate(ordered):
            response = outlined.get(f"/cases/{outlined.handle()}/series/0/frames/{n}/masks.png")
            assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
            assert len(response.content) < 2000
            prepared = prepare_dicom(path)
            assert prepared.place != (0, 0, 1, 1)
            wanted = outlined.node.embedder.masks(prepared.pixels[None])[0]
            laid = [mask_on_frame(mask, prepared.box, prepared.frame) for mask in wanted]
            assert np.array_equal(drawn(response.content), laid)
            lungs = drawn(response.content)[0]
            assert lungs.any()
            assert values_of(outlined, outlined.handle(), n)[lungs].mean() < -600, "they lie on the lungs"

    def test_why_says_which_part_of_each_frame_its_regions_lie_on(self, outlined):
        """The networks see a square around the body, not the frame."""
        handle = outlined.handle()
        why = outlined.get(f"/cases/{handle}/why", series=0, frame=1, query_series=0, query_frame=1).json()
        schema.Why.model_validate(why)
        for place, case in ((why["case_place"], handle), (why["query_place"], "query")):
            box = body_square(values_of(outlined, case, 1).astype(np.float32), (1.0, 1.0))
            assert box is not None
            assert [v * SIDE for v in place] == [np.floor(box[0]), np.floor(box[1]), np.ceil(box[2]), np.ceil(box[3])]
            assert place != [0, 0, 1, 1]

    def test_the_query_has_them_too(self, outlined):
        response = outlined.get("/cases/query/series/0/frames/0/masks.png")
        assert drawn(response.content).shape == (2, SIDE, SIDE)
        assert drawn(response.content)[0].any()

    def test_what_the_browser_has_is_not_sent_again(self, outlined):
        path = f"/cases/{outlined.handle()}/series/0/frames/1/masks.png"
        first = outlined.get(path)
        assert first.headers["cache-control"] == "private, max-age=3600"
        again = outlined.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert outlined.get(path).content == first.content
        assert outlined.get(path.replace("/1/", "/0/")).headers["etag"] != first.headers["etag"]

    def test_a_frame_that_is_not_there_is_404(self, outlined):
        handle = outlined.handle()
        for path in (f"{handle}/series/0/frames/99", f"{handle}/series/9/frames/0", "nobody/series/0/frames/0"):
            assert outlined.get(f"/cases/{path}/masks.png").status_code == 404
        assert outlined.get(f"/cases/{handle}/series/0/frames/0/masks.png", of="0" * 32).status_code == 404

    def test_a_case_looked_at_by_its_masks_is_recorded(self, copied, sample_pack):
        make, jobs = copied
        site = Site(make(models={"pack": str(sample_pack)}), jobs[0])
        before = len(site.audit())
        site.get(f"/cases/{site.handle()}/series/0/frames/0/masks.png")
        assert [e["event"] for e in site.audit()[before:]] == ["answer-viewed", "case-viewed"]
        site.side.close()

    def test_other_kinds_of_images_are_not_outlined(self, make_node, tmp_path, sample_pack):
        node = make_node(tmp_path, models={"pack": str(sample_pack)})
        write_study(sample_study(2, matrix=64, patient_id="MR", seed=5, modality="MR"), tmp_path / "mr")
        add_paths(node.context, [tmp_path / "mr"], {})
        site = Site(node, asked(node, slices=2))
        mr = site.handle()
        assert site.get(f"/cases/{mr}").json()["series"][0]["outlined"] is False
        response = site.get(f"/cases/{mr}/series/0/frames/0/masks.png")
        assert (response.status_code, response.json()["code"]) == (404, "not-found")
        assert "chest CT" in response.json()["detail"]
        site.side.close()

    def test_those_who_ask_for_too_many_at_once_are_told_to_wait(self, copied, sample_pack):
        make, jobs = copied
        site = Site(make(models={"pack": str(sample_pack)}), jobs[0])
        places = site.side.results._outlines._places
        while places.acquire(blocking=False):
            pass
        response = site.get(f"/cases/{site.handle()}/series/0/frames/0/masks.png")
        assert (response.status_code, response.json()["code"]) == (503, "busy")
        site.side.close()

    def test_a_pack_without_a_decoder_offers_none_and_that_is_no_fault(self, make_node, tmp_path):
        node = make_node(tmp_path, models={"pack": str(pooled_pack(tmp_path / "pooled"))})
        write_study(sample_study(2, matrix=64, patient_id="CT", seed=5), tmp_path / "ct")
        add_paths(node.context, [tmp_path / "ct"], {})
        site = Site(node, asked(node, slices=2))
        assert site.get().json()["outlines"] is None
        handle = site.handle()
        assert site.get(f"/cases/{handle}").json()["series"][0]["outlined"] is False
        response = site.get(f"/cases/{handle}/series/0/frames/0/masks.png")
        assert (response.status_code, response.json()["code"]) == (404, "not-found")
        assert "outlines nothing" in response.json()["detail"]
        site.side.close()


class TestSheets:
    def test_the_stored_answer_as_picture_and_document(self, site):
        picture = site.get("/contact-sheet.png", lang="es")
        assert Image.open(io.BytesIO(picture.content)).size == (1600, 1200)
        assert picture.headers["content-language"] == "es"
        document = site.get("/contact-sheet.pdf")
        assert document.headers["content-type"] == "application/pdf"
        assert document.content.startswith(b"%PDF")
        started = time.monotonic()
        assert site.get("/contact-sheet.pdf").content == document.content
        assert time.monotonic() - started < 0.3


class TestAudit:
    def test_an_opening_and_each_case_viewed_are_recorded_once(self, own):
        before = len(own.audit())
        own.get()
        handle = own.handle()
        for frame in (0, 1, 0):
            own.get(f"/cases/{handle}/series/0/frames/{frame}")
        own.get("/atlas", cases=handle)
        written = own.audit()[before:]
        assert [e["event"] for e in written] == ["answer-viewed", "case-viewed"]
        assert all(e["row"] == own.stored.id and e["actor"] == "local" for e in written)
        assert written[1]["pseudonym"] == own.stored.answer.cases[0].subject
        own.get(f"/cases/{handle}")
        own.get()
        assert [e["event"] for e in own.audit()[before + 2 :]] == ["case-viewed", "answer-viewed"]

    def test_what_is_read_without_opening_the_result_first_is_an_opening(self, own):
        before = len(own.audit())
        own.get("/graph")
        assert [e["event"] for e in own.audit()[before:]] == ["answer-viewed"]

    def test_nothing_is_recorded_for_what_is_not_there(self, own):
        before = len(own.audit())
        own.get(of="0" * 32)
        own.get("/cases/nothing", of="1" * 32)
        assert len(own.audit()) == before


class TestErrors:
    @pytest.mark.parametrize(
        "query", [{"k": 0}, {"k": 1001}, {"k": "x"}, {"status": "ill"}, {"text": "a" * 201}, {"modality": "m" * 17}]
    )
    def test_a_parameter_that_is_none_is_422_and_its_value_is_not_told_back(self, site, query):
        response = site.get("/graph", **query)
        assert response.status_code == 422
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == "invalid"
        assert next(iter(query)) in response.json()["detail"]
        assert "aaaa" not in response.text

    def test_parameters_that_nobody_knows_are_ignored(self, site):
        assert site.get("/graph", extra="1", lang="es").json()["live"] is False

    def test_other_methods_and_paths_are_problems(self, site):
        csrf = {"X-Dicomnode-CSRF": site.client.get("/api/v1/session").json()["csrf"]}
        response = site.client.post(f"/api/v1/results/{site.stored.token}/graph", headers=csrf)
        assert (response.status_code, response.headers["content-type"]) == (405, "application/problem+json")
        assert site.get("/nothing").json()["status"] == 404


def every_route(app) -> Iterator[tuple[str, str]]:
    """(method, path) of everything the application answers, those of its routers too."""
    pending = list(app.routes)
    while pending:
        route = pending.pop()
        inner = getattr(getattr(route, "original_router", None), "routes", None)
        if inner is not None:
            pending += inner
        elif isinstance(route, Route):
            yield from ((method, route.path) for method in sorted(route.methods or {"GET"}))


class TestScope:
    """The holder of one result's link, signed in as people are."""

    PUBLIC = frozenset({"/", "/healthz", "/readyz", "/sign-in", "/sign-out", "/continue", "/static/{name}",
                        "/v/assets/{name}", "/api/v1/session"})  # fmt: skip

    @pytest.fixture
    def scoped(self, copied):
        make, jobs = copied
        node = make(web={"auth": Auth(method="users", links="open")})
        mine = Site(node, jobs[0])
        other = node.answers.by_id(node.spool.job(jobs[1]).answer_id)
        options = WebOptions(auth=node.settings.web.auth)
        app = create_app(mine.side, options, node.sign_in, results=mine.side.results, queries=mine.side.queries)
        yield mine, other.token, app
        mine.side.close()

    def test_the_cookie_of_one_answer_reads_nothing_else_on_any_route(self, scoped):
        site, other, app = scoped
        browser = TestClient(app, base_url=BASE, follow_redirects=False, raise_server_exceptions=False)
        page = browser.get(f"/v/r/{site.stored.token}")
        fields = dict(re.findall(r'name="(token|next)" value="([^"]*)"', page.text))
        assert browser.post(f"/v/r/{site.stored.token}", data=fields).status_code == 303
        mine = browser.get(f"/api/v1/results/{site.stored.token}/graph")
        assert mine.status_code == 200
        values = {"case": mine.json()["nodes"][1]["id"], "series": "0", "frame": "0", "name": "x", "rank": "1"}
        asked_about = 0
        for method, path in every_route(app):
            if path in self.PUBLIC:
                continue
            for token in (other, "0" * 32):
                full = re.sub(r"\{(result_id|token|upload_id)(:\w+)?\}", token, path)
                full = re.sub(r"\{(\w+)(:\w+)?\}", lambda m: values[m[1]], full)
                response = browser.request(method, full)
                assert response.status_code in (303, 307, 401, 403, 404, 405, 415), (
                    f"{method} {path}: {response.status_code}"
                )
                assert b"DN-" not in response.content
                asked_about += 1
        assert asked_about > 30
        stranger = TestClient(app, base_url=BASE, follow_redirects=False)
        for _, path in every_route(app):
            if path.startswith("/api/") and path not in self.PUBLIC:
                full = re.sub(r"\{(\w+)(:\w+)?\}", lambda m: values.get(m[1], site.stored.token), path)
                assert stranger.get(full).status_code in (401, 405), path

    def test_another_users_upload_is_404(self, site):
        with pytest.raises(Exception, match="no such result"):
            site.side.results.result("f" * 32, Principal("somebody"))


class TestPages:
    @pytest.fixture
    def built(self, own, tmp_path):
        folder = tmp_path / "viewer"
        (folder / "assets").mkdir(parents=True)
        (folder / "index.html").write_text("<!doctype html><title>viewer</title>")
        (folder / "assets" / "index-AbC123.js").write_text("1")
        (folder / "assets" / "secret.txt").write_text("no")
        app = create_app(own.side, WebOptions(viewer=folder), results=own.side.results)
        return TestClient(app, base_url=BASE)

    def test_the_viewer_is_served_at_its_pages_and_its_assets_for_ever(self, own, built):
        for path in ("/v/", f"/v/r/{own.stored.token}", f"/v/q/{'a' * 32}"):
            response = built.get(path)
            assert "viewer" in response.text
            assert response.headers["cache-control"] == "private, no-cache"
        asset = built.get("/v/assets/index-AbC123.js")
        assert asset.headers["content-type"].startswith("text/javascript")
        assert "immutable" in asset.headers["cache-control"]
        assert built.get("/v", follow_redirects=False).headers["location"] == "/v/"
        for bad in ("secret.txt", "nothing.js", "..%2findex.html", "%2e%2e/index.html", ".js"):
            assert built.get(f"/v/assets/{bad}").status_code == 404

    def test_a_link_that_leads_nowhere_is_told_by_the_pages_for_people(self, own, built):
        response = built.get(f"/v/r/{'0' * 32}")
        assert (response.status_code, "This link leads nowhere" in response.text) == (404, True)
        with own.node.catalogue.engine.begin() as db:
            db.execute(tables.answers.update().values(created=time.time() - 31 * 86400))
        assert built.get(f"/v/r/{own.stored.token}").status_code == 410

    def test_the_plain_page_stays_beside_it_and_stands_in_where_nothing_was_built(self, own, built, tmp_path):
        assert "Similar image of another patient" in built.get(f"/v/r/{own.stored.token}/plain").text
        app = create_app(own.side, WebOptions(viewer=tmp_path / "none"))
        client = TestClient(app, base_url=BASE)
        assert "Similar image of another patient" in client.get(f"/v/r/{own.stored.token}").text
        assert client.get("/v/").status_code == 404


def test_the_web_side_searches_and_shows_without_loading_the_networks(own):
    settings = own.node.settings.model_dump_json()
    code = f"""
import sys, json
from starlette.testclient import TestClient
from dicomnode.config import Settings
from dicomnode.node import Node
from dicomnode.web.app import create_app
from dicomnode.web.options import WebOptions
from dicomnode.webside.services import WebSide
side = WebSide(Node(Settings(**json.loads({settings!r}))), dict)
side.warm = lambda: None
client = TestClient(create_app(side, WebOptions(), results=side.results), base_url="{BASE}")
result = "/api/v1/results/{own.stored.token}"
nodes = client.get(result + "/graph?k=50").json()["nodes"]
client.get(result + "/atlas?cases=query," + nodes[1]["id"]).raise_for_status()
client.get(result + "/cases/" + nodes[1]["id"] + "/series/0/frames/0").raise_for_status()
print(len(nodes), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip().splitlines()[-1] == "4 False"
