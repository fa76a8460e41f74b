"""The web side: health, readiness, metrics, and the page of an answer in every state it can be in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from dicomnode.domain import (
    Answer,
    Case,
    Finding,
    FindingStatus,
    Match,
    ModelId,
    Pseudonym,
    PseudoUid,
    Verdict,
    VerdictKind,
    too_few,
)
from dicomnode.errors import IndexCorrupt
from dicomnode.web import page as page_module
from dicomnode.web.app import create_app
from dicomnode.web.options import WebOptions
from dicomnode.web.page import Pages
from dicomnode.web.security import CONTENT_SECURITY_POLICY
from dicomnode.web.texts import TEXTS

NOT_BUILT = Path("/nonexistent")  # without the viewer its pages are those here
TOKEN = "0123456789abcdef0123456789abcdef"
NOTICE = "Similar image of another patient, not a diagnosis"
QUERY_INSTANCE, QUERY_SERIES = "2.25.777000777", "2.25.888000888"
PNG = b"\x89PNG\r\n\x1a\nrest"
NODULE = Finding("SCT", "27925004", "Nodule")
XSS = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"


def case(rank=1, status=FindingStatus.PRESENT, findings=(NODULE,), similarity=0.93, modality="CT"):
    matches = (
        Match(PseudoUid(QUERY_INSTANCE), PseudoUid(f"2.25.{rank}01"), similarity - 0.1),
        Match(PseudoUid(QUERY_INSTANCE), PseudoUid(f"2.25.{rank}02"), similarity),
    )
    return Case(
        rank, similarity, Pseudonym(f"DN-CASE{rank}"), PseudoUid(f"2.25.{rank}"), PseudoUid(f"2.25.{rank}9"),
        modality, status, tuple(findings), matches,
    )  # fmt: skip


def answer(kind=VerdictKind.SIMILAR, cases=None, p=0.42, reason="", calibrated=False):
    cases = [case()] if cases is None else cases
    said = {"modality": "CT", "slices": 16, "series": [QUERY_SERIES], "study_date": "20240229"}
    return Answer(said, ModelId("9f2c4be1a0d37756"), Verdict(kind, p, reason), tuple(cases), 240, calibrated).as_json()


class Services:
    """What the composition root hands over, from values."""

    def __init__(self, **answers):
        self.answers = answers
        self.states = {n: {"ready": True, "detail": "1 running"} for n in ("receiver", "worker", "index", "model")}
        self.asked = []
        self.opened = 0

    def readiness(self):
        return self.states

    def answer(self, token, actor):
        self.opened += 1
        found = self.answers.get(token[:4].rstrip("-"))
        if isinstance(found, Exception):
            raise found
        return found

    def thumbnail(self, token, instance_uid):
        self.asked.append(instance_uid)
        return None if instance_uid.endswith("02") and instance_uid.startswith("2.25.3") else PNG

    def metrics(self):
        return b"dicomnode_associations_total 1.0\n"


def client(services=None, **options):
    app = create_app(services or Services(), WebOptions(viewer=NOT_BUILT, **options))
    return TestClient(app, base_url="http://127.0.0.1:8080", raise_server_exceptions=False)


def page(value, **kwargs):
    return client(Services(good=value)).get(f"/v/r/good{TOKEN}", **kwargs)


def test_healthz_is_200_while_the_process_lives_whatever_is_ready():
    services = Services()
    services.states = {}
    assert client(services).get("/healthz").json() == {"status": "ok"}


def test_the_bare_address_leads_to_the_viewer_or_where_none_was_built_to_the_state_of_the_node(tmp_path):
    assert client().get("/", follow_redirects=False).headers["location"] == "/readyz"
    (tmp_path / "index.html").write_text("<!doctype html>")
    app = create_app(Services(), WebOptions(viewer=tmp_path))
    answer = TestClient(app, base_url="http://127.0.0.1:8080").get("/", follow_redirects=False)
    assert answer.headers["location"] == "/v/"


def test_readyz_is_200_only_when_every_part_is_ready():
    services = Services()
    assert client(services).get("/readyz").status_code == 200
    services.states["model"] = {"ready": False, "detail": "loading"}
    response = client(services).get("/readyz")
    assert response.status_code == 503
    assert response.json()["ready"] is False
    assert response.json()["parts"]["model"] == {"ready": False, "detail": "loading"}
    assert response.json()["parts"]["index"]["ready"] is True


@pytest.mark.parametrize("part", ["receiver", "worker", "index", "model"])
def test_a_part_that_nobody_reports_is_not_ready(part):
    services = Services()
    del services.states[part]
    response = client(services).get("/readyz")
    assert response.status_code == 503
    assert response.json()["parts"][part] == {"ready": False, "detail": "not running"}


def test_a_web_process_on_its_own_may_need_fewer_parts():
    services = Services()
    del services.states["receiver"]
    assert client(services, required_parts=("worker", "index", "model")).get("/readyz").status_code == 200


def test_metrics_are_given_as_prometheus_text():
    response = client().get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"dicomnode_associations_total" in response.content


def test_the_page_says_the_verdict_first_and_always_shows_the_notice():
    html = page(answer(cases=[case(1), case(2)])).text
    assert re.search(r"<h1[^>]*>Similar cases found: the 2 nearest are shown</h1>", html)
    assert html.count("<h1") == 1
    assert NOTICE in html
    assert "among 240 cases" in html


FORMS = {  # values of each template beside the answer's
    "sign_in.html": {"token": "", "name": "", "error": "", "seconds": 0, "nobody": False},
    "sign_in_again.html": {},
    "sign_in_link.html": {"token": "", "action": "/"},
    "sign_in_out.html": {"token": "", "name": "anna"},
}


@pytest.mark.parametrize("language", ["en", "es"])
@pytest.mark.parametrize("template", FORMS)
def test_every_page_with_a_form_shows_the_notice_once(template, language):
    pages = Pages({"page.css": "", "icon.svg": ""})
    assert pages.form(template, "link", language, **FORMS[template]).count(TEXTS[language]["notice"]) == 1


@pytest.mark.parametrize("language", ["en", "es"])
@pytest.mark.parametrize("name", ["unknown", "expired", "error"])
def test_every_message_shows_the_notice_once(name, language):
    assert Pages({"page.css": "", "icon.svg": ""}).message(name, language).count(TEXTS[language]["notice"]) == 1


def test_the_pages_tried_are_all_there_are():
    folder = Path(page_module.__file__).parent / "templates"
    assert {p.name for p in folder.glob("*.html")} == {
        *FORMS,
        "answer.html",
        "message.html",
        "base.html",
        "symbols.html",
    }


def test_cases_stand_in_order_with_score_findings_codes_and_anchor():
    html = page(answer(cases=[case(1), case(2, similarity=0.5)])).text
    assert html.index('id="case=1"') < html.index('id="case=2"')
    assert "0.93" in html
    assert "0.50" in html
    assert "Nodule <code>SCT 27925004</code>" in html
    assert f'src="/v/r/good{TOKEN}/cases/1.png"' in html
    assert 'alt="Best matching slice of case 1, CT"' in html


def test_a_calibrated_similarity_is_in_percent_and_a_score_is_not():
    assert "93 %" in page(answer(calibrated=True)).text
    assert "93 %" not in page(answer()).text
    assert "not a probability" in page(answer()).text


def test_statuses_differ_by_word_and_shape():
    cases = [case(1), case(2, FindingStatus.NONE, ()), case(3, FindingStatus.UNKNOWN, ())]
    items = page(answer(cases=cases)).text.split('<li id="case=')[1:]
    words = ("Finding recorded", "Stated to have no finding", "Findings not known")
    shapes = ('<path d="M8 1.5', "<circle", "<rect x=")
    for item, word, shape in zip(items, words, shapes, strict=True):
        body = item.split("</li>")[0].split('class="status"')[1]
        assert word in body
        assert shape in body


def test_the_tally_never_counts_unknown_as_without_finding():
    cases = [case(1), case(2, FindingStatus.UNKNOWN, ()), case(3, FindingStatus.UNKNOWN, ())]
    tally = page(answer(cases=cases)).text.split('class="tally"')[1].split("</section>")[0]
    assert "1 of 3" in tally
    assert "2 of 3" in tally
    assert "Stated to have no finding" not in tally


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (VerdictKind.NONE, "No similar case in this repository"),
        (VerdictKind.REPOSITORY_TOO_SMALL, "This repository is too small to tell"),
    ],
)
def test_below_the_threshold_the_list_says_so(kind, sentence):
    html = page(answer(kind, p=None)).text
    assert sentence in html.split("</h1>")[0]
    assert "below threshold" in html
    assert NOTICE in html
    assert "below threshold" not in page(answer()).text


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en", "12 patients in the repository; a statement needs 20; 240 cases searched. So the node"),
        ("es", "12 pacientes en el repositorio; una afirmación requiere 20; 240 casos examinados. Por eso el nodo"),
    ],
)
def test_a_repository_that_is_too_small_tells_patients_from_cases(language, said):
    small = answer(VerdictKind.REPOSITORY_TOO_SMALL, p=None, reason=too_few(12))
    assert said in page(small, headers={"accept-language": language}).text


def test_an_answer_without_cases_and_one_that_was_not_searchable_are_explained():
    assert "There is no case to show" in page(answer(VerdictKind.REPOSITORY_TOO_SMALL, cases=[])).text
    html = page(answer(VerdictKind.NOT_SEARCHABLE, cases=[], reason="no image has pixels")).text
    assert "This image could not be searched" in html
    assert "Reason: no image has pixels" in html


def test_nothing_of_the_query_but_modality_and_slices_is_shown():
    response = page(answer())
    for secret in (QUERY_INSTANCE, QUERY_SERIES, "20240229"):
        assert secret not in response.text
    assert "CT, 16 slices" in response.text
    assert "2.25." not in response.text  # nor any UID at all


@pytest.mark.parametrize("field", ["display", "code", "system", "modality", "reason"])
def test_markup_in_data_is_shown_as_text(field):
    if field == "reason":
        value = answer(VerdictKind.NOT_SEARCHABLE, cases=[], reason=XSS)
    elif field == "modality":
        value = answer(cases=[case(modality=XSS)])
    else:
        value = answer(cases=[case(findings=[Finding(**{**NODULE.as_json(), field: XSS})])])
    html = page(value).text
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7*7 }}" in html  # data is never a template


def test_the_page_has_no_inline_code_style_or_foreign_resource():
    html = page(answer(cases=[case(1), case(2)])).text
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=|https?://|//\w", html)


@pytest.mark.parametrize(
    ("headers", "query", "language"),
    [
        ({"accept-language": "es-MX,es;q=0.9,en;q=0.5"}, "", "es"),
        ({"accept-language": "fr,en;q=0.3,es;q=0.2"}, "", "en"),
        ({"accept-language": "de"}, "", "en"),
        ({"accept-language": "en"}, "?lang=es", "es"),
        ({"accept-language": "es;q=x"}, "?lang=xx", "en"),
    ],
)
def test_the_page_is_in_the_language_asked_for(headers, query, language):
    response = client(Services(good=answer())).get(f"/v/r/good{TOKEN}{query}", headers=headers)
    assert f'<html lang="{language}">' in response.text
    assert response.headers["content-language"] == language
    assert ("no es un diagnóstico" in response.text) is (language == "es")
    assert ("0,93" in response.text) is (language == "es")


def test_the_default_language_is_the_setting():
    response = client(language="es").get(f"/v/r/{TOKEN}", headers={"accept-language": ""})
    assert "Este enlace no lleva a nada" in response.text


@pytest.mark.parametrize("path", [f"/v/r/{TOKEN}", "/v/r/short", "/v/r/..%2f..%2fetc", "/v/other", "/v/r/a%00b"])
def test_an_unknown_link_is_a_designed_404(path):
    response = client().get(path)
    assert response.status_code == 404
    assert "This link leads nowhere" in response.text
    assert response.headers["content-type"].startswith("text/html")


def test_an_expired_link_is_410_for_page_and_images():
    expired = client(Services(good="expired"))
    response = expired.get(f"/v/r/good{TOKEN}")
    assert response.status_code == 410
    assert "This link has expired" in response.text
    assert expired.get(f"/v/r/good{TOKEN}/cases/1.png").status_code == 410


def test_a_case_image_is_the_best_matching_slice_of_that_case():
    services = Services(good=answer(cases=[case(1), case(2)]))
    response = client(services).get(f"/v/r/good{TOKEN}/cases/2.png")
    assert (response.status_code, response.content) == (200, PNG)
    assert response.headers["content-type"] == "image/png"
    assert response.headers["cache-control"] == "private, max-age=3600"
    assert services.asked == ["2.25.202"]


def test_a_page_and_its_images_are_one_opening_for_the_audit_trail():
    services = Services(good=answer(cases=[case(1), case(2)]))
    browser = client(services)
    browser.get(f"/v/r/good{TOKEN}")
    for rank in (1, 2):
        assert browser.get(f"/v/r/good{TOKEN}/cases/{rank}.png").status_code == 200
    assert services.opened == 1
    client(services).get(f"/v/r/good{TOKEN}/cases/1.png")
    assert services.opened == 2  # an image asked for without its page


@pytest.mark.parametrize("path", ["cases/4.png", "cases/0.png", "cases/3.png", "cases/x.png"])
def test_an_image_outside_the_answer_or_gone_is_404(path):
    response = client(Services(good=answer(cases=[case(1), case(2), case(3)]))).get(f"/v/r/good{TOKEN}/{path}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_style_and_icon_are_served_under_hashed_names_only():
    html = page(answer()).text
    for path in re.findall(r'href="(/static/[^"]+)"', html):
        response = client().get(path)
        assert response.status_code == 200
        assert "immutable" in response.headers["cache-control"]
    assert client().get("/static/page.css").status_code == 404
    assert client().get("/static/..%2fapp.py").status_code == 404


@pytest.mark.parametrize("path", ["/healthz", "/nothing", f"/v/r/{TOKEN}", f"/v/r/good{TOKEN}", f"/v/r/boom{TOKEN}"])
def test_every_response_carries_the_security_headers(path):
    headers = client(Services(good=answer(), boom=RuntimeError("PLANTED"))).get(path).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"].startswith("private")
    assert "access-control-allow-origin" not in headers
    assert "unsafe" not in headers["content-security-policy"]


def test_a_problem_is_told_as_rfc_9457_says():
    response = client().get("/nothing")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {"type": "about:blank", "title": "Not Found", "status": 404, "code": "not-found"}
    assert client().post("/healthz").status_code == 405


def test_a_fault_is_told_without_its_text():
    services = Services(boom=RuntimeError("PLANTED"))
    response = client(services).get(f"/v/r/boom{TOKEN}")
    assert response.status_code == 500
    assert "Something went wrong" in response.text
    assert "PLANTED" not in response.text
    services.metrics = lambda: 1 / 0
    response = client(services).get("/metrics")
    assert response.json()["code"] == "error"
    assert "division" not in response.text


def test_an_error_of_ours_gives_its_status_code_and_line():
    services = Services(boom=IndexCorrupt("segment 3 does not match its checksum"))
    services.metrics = lambda: services.answer("boom", "local")
    response = client(services).get("/metrics")
    assert (response.status_code, response.json()["code"]) == (503, "index-corrupt")
    assert response.json()["detail"] == "segment 3 does not match its checksum"
    assert client(services).get(f"/v/r/boom{TOKEN}").status_code == 503
