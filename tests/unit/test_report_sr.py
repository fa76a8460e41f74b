"""The Similar Cases Report: what it says, whose findings it holds, and that it is the same file every time."""

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path

import highdicom as hd
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from dicomnode.domain import (
    Answer,
    Case,
    Finding,
    FindingStatus,
    Match,
    ModelId,
    OriginalUid,
    Pseudonym,
    PseudoUid,
    Verdict,
    VerdictKind,
)
from dicomnode.errors import InputError
from dicomnode.report.codes import (
    COMPREHENSIVE_SR,
    DEVICE_UID,
    ENHANCED_SR,
    IMPLEMENTATION_CLASS_UID,
    LABEL_SCHEME_UID,
    SCHEME_UID,
    Concept,
    Language,
)
from dicomnode.report.spec import Predecessor, QueryImage, ReportSpec
from dicomnode.report.sr import build_sr, to_bytes
from dicomnode.report.tree import sr_tree
from dicomnode.report.uids import Kind, instance_uid, series_uid, subject_uid

LINK = "https://node.example/v/r/5f0c"
PNEUMONIA = Finding("SCT", "233604007", "Pneumonia")


@pytest.fixture
def header() -> Dataset:
    return pydicom.dcmread(get_testdata_file("CT_small.dcm"), stop_before_pixels=True)


def pseudo(name: str) -> PseudoUid:
    return PseudoUid(subject_uid(name))


def case(
    rank: int, *, status: FindingStatus = FindingStatus.PRESENT, findings: tuple[Finding, ...] = (PNEUMONIA,)
) -> Case:
    return Case(
        rank=rank,
        similarity=0.9731 - 0.001 * rank,
        subject=Pseudonym(f"DN-{rank:05d}"),
        study_uid=pseudo(f"study {rank}"),
        series_uid=pseudo(f"series {rank}"),
        modality="CT",
        status=status,
        findings=findings if status is FindingStatus.PRESENT else (),
        matches=(
            Match(pseudo("query 1"), pseudo(f"worse {rank}"), 0.5),
            Match(pseudo("query 2"), pseudo(f"best {rank}"), 0.9),
        ),
    )


def answer(
    *cases: Case, kind: VerdictKind = VerdictKind.SIMILAR, p: float | None = None, calibrated: bool = False
) -> Answer:
    return Answer(
        query={"modality": "CT"},
        model_id=ModelId("ab" * 32),
        verdict=Verdict(kind, p),
        cases=cases,
        searched=1234,
        calibrated=calibrated,
        search={"engine": "mrpt", "filters": ["left out: not one value"]},
    )


def spec(header: Dataset, **changes: object) -> ReportSpec:
    image = QueryImage(
        header.SOPClassUID,
        OriginalUid(header.SOPInstanceUID),
        OriginalUid(header.SeriesInstanceUID),
        3,
        17,
        pseudo("query 2"),
    )
    unmatched = replace(image, sop_instance_uid=OriginalUid("1.2.3"), instance_number=18, pseudo_uid=pseudo("query 3"))
    base = ReportSpec(
        series_instance_uid=series_uid(header.StudyInstanceUID, Kind.SR, namespace="test"),
        sop_instance_uid=instance_uid("answer 1", COMPREHENSIVE_SR, namespace="test"),
        created=datetime(2026, 3, 4, 23, 30, 15, tzinfo=UTC),
        link=LINK,
        software_version="0.1.0",
        query_images=(image, unmatched),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def items(ds: Dataset, concept: Concept) -> list[Dataset]:
    found = []
    for item in ds.get("ContentSequence", []):
        if item.ConceptNameCodeSequence[0].CodeValue == concept.code:
            found.append(item)
        found += items(item, concept)
    return found


def cases_of(ds: Dataset) -> list[Dataset]:
    return [i for i in ds.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == Concept.CASE.code]


def first_contained(ds: Dataset) -> Dataset:
    return next(i for i in ds.ContentSequence if i.RelationshipType == "CONTAINS")


def test_the_report_belongs_to_the_patient_and_study_of_the_query(header: Dataset) -> None:
    ds = build_sr(header, answer(case(1)), spec=spec(header))
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "StudyID",
        "StudyDescription",
    ):
        assert ds[keyword].value == header[keyword].value
    assert (ds.Modality, ds.SeriesNumber, ds.InstanceNumber) == ("SR", 9901, 1)
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    assert ds.InstitutionName == header.InstitutionName
    assert ds.SeriesInstanceUID != header.SeriesInstanceUID


def test_highdicom_opens_what_was_written(header: Dataset) -> None:
    read = pydicom.dcmread(BytesIO(to_bytes(build_sr(header, answer(case(1), case(2)), spec=spec(header)))))
    document = hd.sr.ComprehensiveSR.from_dataset(read)
    assert document.content[0].name.value == "DN-000"
    assert read.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert read.file_meta.ImplementationVersionName == "DICOMNODE_0.1.0"
    scheme = read.CodingSchemeIdentificationSequence[0]
    assert (scheme.CodingSchemeDesignator, scheme.CodingSchemeUID) == ("99DICOMNODE", SCHEME_UID)


def test_each_case_replaces_the_subject_before_anything_is_said_of_it(header: Dataset) -> None:
    ds = build_sr(header, answer(case(1), case(2)), spec=spec(header))
    for rank, container in enumerate(cases_of(ds), start=1):
        context = container.ContentSequence[:4]
        assert [i.RelationshipType for i in context] == ["HAS OBS CONTEXT"] * 4
        assert [i.ConceptNameCodeSequence[0].CodeValue for i in context] == ["121018", "121024", "121028", "121030"]
        assert pseudo(f"study {rank}") == context[0].UID
        assert context[3].TextValue == f"DN-{rank:05d}"


def test_findings_appear_only_inside_the_container_of_another_patient(header: Dataset) -> None:
    ds = build_sr(header, answer(case(1), case(2)), spec=spec(header))
    inside = [f for c in cases_of(ds) for f in items(c, Concept.FINDING)]
    assert len(inside) == 2
    assert items(ds, Concept.FINDING) == inside


def test_no_image_of_another_patient_is_referenced(header: Dataset) -> None:
    ds = build_sr(header, answer(case(1)), spec=spec(header))
    (evidence,) = ds.CurrentRequestedProcedureEvidenceSequence
    assert evidence.StudyInstanceUID == header.StudyInstanceUID
    assert not any(i.ValueType in {"IMAGE", "COMPOSITE"} for c in cases_of(ds) for i in c.ContentSequence)
    assert "PertinentOtherEvidenceSequence" not in ds


def test_only_the_query_slices_that_matched_are_referenced(header: Dataset) -> None:
    ds = build_sr(header, answer(case(1)), spec=spec(header))
    images = [i for i in items(ds, Concept.QUERY_IMAGE) if i.ValueType == "IMAGE"]
    assert [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in images] == [header.SOPInstanceUID]
    assert "Series 3, image 17 (of the study this report belongs to)" in [
        i.TextValue for i in items(cases_of(ds)[0], Concept.QUERY_IMAGE)
    ]


def test_the_best_match_is_the_one_named(header: Dataset) -> None:
    container = cases_of(build_sr(header, answer(case(1)), spec=spec(header)))[0]
    assert [i.UID for i in items(container, Concept.INSTANCE_UID)] == [pseudo("best 1")]
    assert [i.UID for i in items(container, Concept.SERIES_UID)] == [pseudo("series 1")]


def test_percent_is_said_only_of_a_calibrated_similarity(header: Dataset) -> None:
    (percent,) = items(build_sr(header, answer(case(1), calibrated=True), spec=spec(header)), Concept.SIMILARITY)
    assert float(percent.MeasuredValueSequence[0].NumericValue) == 97.2
    assert percent.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "%"
    plain = build_sr(header, answer(case(1)), spec=spec(header))
    (score,) = items(plain, Concept.SCORE)
    assert float(score.MeasuredValueSequence[0].NumericValue) == 0.9721
    assert score.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert items(plain, Concept.SIMILARITY) == []


@pytest.mark.parametrize("kind", [VerdictKind.NONE, VerdictKind.REPOSITORY_TOO_SMALL])
def test_a_list_below_threshold_opens_with_that_and_marks_every_case(header: Dataset, kind: VerdictKind) -> None:
    ds = build_sr(header, answer(case(1), case(2), kind=kind), spec=spec(header))
    opening = first_contained(ds)
    assert opening.ConceptNameCodeSequence[0].CodeValue == "DN-015"
    assert "below threshold" in opening.TextValue
    for container in cases_of(ds):
        assert "Below threshold" in items(container, Concept.VERDICT)[0].TextValue


def test_the_conformal_p_value_is_given_with_the_verdict_none(header: Dataset) -> None:
    ds = build_sr(header, answer(case(1), kind=VerdictKind.NONE, p=0.0123), spec=spec(header))
    assert "(p = 0.0123)" in first_contained(ds).TextValue
    assert "Algorithm Parameters: p=0.0123" in [line.strip() for line in sr_tree(ds)]


@pytest.mark.parametrize(
    ("language", "said"),
    [
        (Language.EN, "The score ranks cases; it is not a probability."),
        (Language.ES, "La puntuación ordena los casos; no es una probabilidad."),
    ],
)
def test_the_notice_says_that_a_score_is_no_probability(header: Dataset, language: Language, said: str) -> None:
    ds = build_sr(header, answer(case(1)), spec=replace(spec(header), language=language))
    assert items(ds, Concept.NOTICE)[0].TextValue.endswith(said)


def test_similar_cases_carry_no_mark(header: Dataset) -> None:
    ds = build_sr(header, answer(case(1)), spec=spec(header))
    assert items(cases_of(ds)[0], Concept.VERDICT) == []
    assert "below threshold" not in "\n".join(sr_tree(ds)).lower()


def test_a_study_that_could_not_be_searched_is_told_why(header: Dataset) -> None:
    refused = replace(
        answer(), verdict=Verdict(VerdictKind.NOT_SEARCHABLE, None, "no image\x1b[31m of a supported kind.")
    )
    ds = build_sr(header, refused, spec=spec(header, query_images=()))
    assert first_contained(ds).TextValue == (
        "This study could not be searched: no image [31m of a supported kind. No case is listed."
    )
    assert cases_of(ds) == []
    reference = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == header.SOPInstanceUID


def test_unknown_is_never_written_as_none(header: Dataset) -> None:
    ds = build_sr(
        header, answer(case(1, status=FindingStatus.UNKNOWN), case(2, status=FindingStatus.NONE)), spec=spec(header)
    )
    assert [f.TextValue for f in items(ds, Concept.FINDING)] == ["unknown / not recorded", "none recorded by source"]


def test_a_present_status_without_code_is_not_hidden(header: Dataset) -> None:
    ds = build_sr(header, answer(case(1, findings=())), spec=spec(header))
    assert [f.TextValue for f in items(ds, Concept.FINDING)] == ["present, not coded by source"]


@pytest.mark.parametrize("system", ["SCT", "I10C", "I10", "I9C", "99LABEL"])
def test_findings_keep_their_code(header: Dataset, system: str) -> None:
    ds = build_sr(header, answer(case(1, findings=(Finding(system, "J18.9", "Pneumonia"),))), spec=spec(header))
    (finding,) = items(ds, Concept.FINDING)
    code = finding.ConceptCodeSequence[0]
    assert (code.CodingSchemeDesignator, code.CodeValue, code.CodeMeaning) == (system, "J18.9", "Pneumonia")
    schemes = {i.CodingSchemeDesignator: i.CodingSchemeUID for i in ds.CodingSchemeIdentificationSequence}
    assert (schemes.get("99LABEL") == LABEL_SCHEME_UID) is (system == "99LABEL")


def test_long_codes_and_meanings_lose_nothing(header: Dataset) -> None:
    display = "Neumonía organizada criptogénica con afectación bilateral y derrame pleural izquierdo asociado"
    long = Finding("99LABEL", "neumonia-organizada-criptogenica", display)
    (finding,) = items(build_sr(header, answer(case(1, findings=(long,))), spec=spec(header)), Concept.FINDING)
    code = finding.ConceptCodeSequence[0]
    assert code.LongCodeValue == long.code
    assert "CodeValue" not in code
    assert len(code.CodeMeaning.encode()) <= 64
    assert finding.ContentSequence[0].TextValue == display


def test_a_url_like_long_label_is_no_urn_code(header: Dataset) -> None:
    odd = Finding("99LABEL", "https://terms.example/lung/nodule", "Nodule")
    (finding,) = items(build_sr(header, answer(case(1, findings=(odd,))), spec=spec(header)), Concept.FINDING)
    assert finding.ConceptCodeSequence[0].LongCodeValue == odd.code
    assert "URNCodeValue" not in finding.ConceptCodeSequence[0]


def test_a_code_of_an_unknown_system_is_written_as_text(header: Dataset) -> None:
    odd = Finding("http://terms.example/very-long-system", "A\\1", "Something")
    (finding,) = items(build_sr(header, answer(case(1, findings=(odd,))), spec=spec(header)), Concept.FINDING)
    assert finding.TextValue == "Something (http://terms.example/very-long-system, A/1)"


def test_every_container_is_separate_so_that_readers_show_concept_names(header: Dataset) -> None:
    ds = build_sr(header, answer(case(1)), spec=spec(header))
    containers = [ds, *(i for i in ds.ContentSequence if i.ValueType == "CONTAINER")]
    assert {c.ContinuityOfContent for c in containers} == {"SEPARATE"}
    assert len(containers) == 4


def test_the_links_lead_to_the_answer_and_to_each_case(header: Dataset) -> None:
    ds = build_sr(header, answer(case(1), case(2)), spec=spec(header))
    assert [i.TextValue for i in items(ds, Concept.LINK)] == [LINK, f"{LINK}#case=1", f"{LINK}#case=2"]
    assert items(build_sr(header, answer(case(1)), spec=spec(header, link="")), Concept.LINK) == []


def test_rank_number_searched_and_method_are_there(header: Dataset) -> None:
    ds = build_sr(header, answer(case(1), case(2)), spec=spec(header))
    assert [i.TextValue for i in items(ds, Concept.RANK)] == ["1 of 2", "2 of 2"]
    (method,) = items(ds, Concept.METHOD)
    assert [i.TextValue for i in items(method, Concept.SEARCHED)] == ["1234"]
    lines = "\n".join(sr_tree(ds))
    assert f"Algorithm Parameters: model_id={'ab' * 32}" in lines
    assert "engine=mrpt" in lines
    assert "filters" not in lines


def test_the_observer_is_the_device(header: Dataset) -> None:
    ds = build_sr(header, answer(), spec=spec(header, device_serial="SN-7"))
    lines = [line.strip() for line in sr_tree(ds)]
    assert f"Device Observer UID: {DEVICE_UID}" in lines
    assert "Device Observer Serial Number: SN-7" in lines


def test_spanish_is_spanish_down_to_the_concept_names(header: Dataset) -> None:
    read = pydicom.dcmread(
        BytesIO(to_bytes(build_sr(header, answer(case(1)), spec=spec(header, language=Language.ES))))
    )
    assert read.SpecificCharacterSet == "ISO_IR 192"
    lines = [line.strip() for line in sr_tree(read)]
    assert lines[0] == "Informe de casos similares"
    assert lines[1] == "Language of Content Item and Descendants: Spanish (RFC5646 es)"
    assert "Número de casos examinados: 1234" in lines
    assert "Orden de similitud: 1 de 1" in lines


def test_every_concept_name_fits_its_value_representation() -> None:
    values = [c.value[0] for c in Concept]
    assert values == [f"DN-{i:03d}" for i in range(16)]
    for concept in Concept:
        for language in Language:
            assert len(concept.coded(language).CodeMeaning.encode()) <= 64


def test_enhanced_sr_is_another_object_with_the_same_content(header: Dataset) -> None:
    uid = instance_uid("answer 1", ENHANCED_SR, namespace="test")
    enhanced = build_sr(header, answer(case(1)), spec=spec(header, sop_class_uid=ENHANCED_SR, sop_instance_uid=uid))
    comprehensive = build_sr(header, answer(case(1)), spec=spec(header))
    assert enhanced.SOPClassUID == enhanced.file_meta.MediaStorageSOPClassUID == ENHANCED_SR
    assert enhanced.SOPInstanceUID != comprehensive.SOPInstanceUID
    assert enhanced.SeriesInstanceUID == comprehensive.SeriesInstanceUID
    assert sr_tree(enhanced) == sr_tree(comprehensive)


def test_a_new_answer_names_its_predecessors(header: Dataset) -> None:
    study = OriginalUid(header.StudyInstanceUID)
    old = [Predecessor(study, pseudo("sr series"), COMPREHENSIVE_SR, pseudo(f"old {i}")) for i in (1, 2)]
    ds = build_sr(header, answer(), spec=spec(header, instance_number=3, predecessors=tuple(old)))
    (item,) = ds.PredecessorDocumentsSequence
    (series,) = item.ReferencedSeriesSequence
    assert item.StudyInstanceUID == study
    assert [s.ReferencedSOPInstanceUID for s in series.ReferencedSOPSequence] == [pseudo("old 1"), pseudo("old 2")]
    assert ds.InstanceNumber == 3


def test_the_moment_is_written_in_the_offset_of_the_study(header: Dataset) -> None:
    header.TimezoneOffsetFromUTC = "+0100"
    ds = build_sr(header, answer(), spec=spec(header))
    assert (ds.ContentDate, ds.ContentTime, ds.TimezoneOffsetFromUTC) == ("20260305", "003015.000000", "+0100")


def test_without_a_declared_offset_none_is_declared_for_the_study(header: Dataset) -> None:
    del header.TimezoneOffsetFromUTC
    local = datetime(2026, 3, 4, 18, 0, tzinfo=timezone(timedelta(hours=9)))
    ds = build_sr(header, answer(), spec=spec(header, created=local, series_started=local))
    assert (ds.ContentDate, ds.ContentTime) == ("20260304", "180000.000000")
    assert (ds.SeriesDate, ds.SeriesTime) == ("20260304", "180000.000000")
    assert "TimezoneOffsetFromUTC" not in ds


def test_the_header_that_was_given_is_left_alone(header: Dataset) -> None:
    before = header.to_json()
    build_sr(header, answer(case(1)), spec=spec(header))
    assert header.to_json() == before


def test_the_same_answer_is_the_same_file_in_another_process(header: Dataset) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import hashlib, pydicom, test_report_sr as t;"
        "h = pydicom.dcmread(t.get_testdata_file('CT_small.dcm'), stop_before_pixels=True);"
        "a = t.answer(t.case(1), t.case(2), calibrated=True);"
        "print(hashlib.sha256(t.to_bytes(t.build_sr(h, a, spec=t.spec(h)))).hexdigest())"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    digests = {
        subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_a_case_with_a_bad_uid_is_refused(header: Dataset) -> None:
    broken = replace(case(1), study_uid=PseudoUid("not-a-uid"))
    with pytest.raises(InputError, match="not valid"):
        build_sr(header, answer(broken), spec=spec(header))


@pytest.mark.parametrize(
    "change",
    [
        {"created": datetime(2026, 1, 1)},  # noqa: DTZ001  (the missing zone is the point)
        {"sop_instance_uid": "1.02"},
        {"series_instance_uid": ""},
        {"instance_number": 0},
        {"language": "fr"},
        {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.88.11"},
    ],
)
def test_an_impossible_specification_does_not_exist(header: Dataset, change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        spec(header, **change)


def test_a_language_may_come_as_a_setting(header: Dataset) -> None:
    assert spec(header, language="es").language is Language.ES
