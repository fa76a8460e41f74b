"""Every kind of object the node sends passes dciodvfy (two releases), dsrdump and DicomSRValidator with 0 errors."""

import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_charset_files, get_testdata_file
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
from dicomnode.report.codes import COMPREHENSIVE_SR, ENHANCED_SR, Language
from dicomnode.report.contact_sheet import QueryTile, Tiles, build_contact_sheet
from dicomnode.report.header import to_bytes
from dicomnode.report.pdf import build_pdf
from dicomnode.report.spec import Predecessor, QueryImage, ReportSpec
from dicomnode.report.sr import build_sr
from dicomnode.report.uids import Kind, instance_uid, series_uid, subject_uid

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

_loaded = importlib.util.spec_from_file_location("validators", Path(__file__).parents[1] / "validators.py")
assert _loaded is not None
assert _loaded.loader is not None
validators = importlib.util.module_from_spec(_loaded)
_loaded.loader.exec_module(validators)

LONG = "Neumonía organizada criptogénica con afectación bilateral y derrame pleural izquierdo asociado; " * 3
FINDINGS = (
    (Finding("SCT", "233604007", "Pneumonia"), Finding("I10C", "J18.9", "Pneumonia, unspecified organism")),
    (Finding("99LABEL", "neumonia-organizada-criptogenica", LONG), Finding("I9C", "486", "肺炎")),
    (Finding("99LABEL", "neumonía bilater", "ñ" * 64), Finding("http://terms.example/system", "A\\1", "x")),
    (Finding("I10", "J18.9", "\x1b[31m\x00 "), Finding("SCT", "1234567890123456789", "x")),
)


def pseudo(name: str) -> PseudoUid:
    return PseudoUid(subject_uid(name))


def answer(
    n: int, kind: VerdictKind = VerdictKind.SIMILAR, *, calibrated: bool = False, p: float | None = None
) -> Answer:
    cases = tuple(
        Case(
            rank=i + 1,
            similarity=1 - i / (n + 1),
            subject=Pseudonym(f"DN-{i:05d}"),
            study_uid=pseudo(f"study {i}"),
            series_uid=pseudo(f"series {i}"),
            modality="CT" if i % 4 else "",
            status=(status := list(FindingStatus)[i % 3]),
            findings=FINDINGS[i // 3 % len(FINDINGS)] if status is FindingStatus.PRESENT else (),
            matches=(Match(pseudo("query"), pseudo(f"slice {i}"), 0.9),) if i % 5 != 4 else (),
        )
        for i in range(n)
    )
    verdict = Verdict(kind, p, "no image" if kind is VerdictKind.NOT_SEARCHABLE else "")
    return Answer({}, ModelId("ab" * 32), verdict, cases, searched=n, calibrated=calibrated, search={"engine": "mrpt"})


def plain() -> Dataset:
    return pydicom.dcmread(get_testdata_file("CT_small.dcm"), stop_before_pixels=True)


def charset(file: str) -> Dataset:
    (path,) = get_charset_files(file)
    return pydicom.dcmread(path, stop_before_pixels=True, force=True)


def spanish() -> Dataset:
    ds = plain()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName = "Muñoz Ibáñez^María José"
    ds.StudyDescription = "TC de tórax"
    return ds


def empty() -> Dataset:
    source = plain()
    ds = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(ds, keyword, source[keyword].value)
    return ds


def hostile() -> Dataset:
    """A header in which nearly every value is against the Standard."""
    ds = plain()
    with pydicom.config.disable_value_validation():
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.PatientName = "x" * 90 + "^" + "山" * 50 + "^" * 9 + "="
        ds.PatientID, ds.AccessionNumber, ds.StudyID = "P" * 70, "A" * 20, "S\\T"
        ds.PatientBirthDate, ds.StudyDate, ds.StudyTime = "1960", "2024.01.02", "25:00"
        ds.PatientSex, ds.PatientAge, ds.PatientWeight = "female", "64 years", "9" * 30
        ds.StudyDescription, ds.PatientComments = "説明" * 60, "line\r\nline\x07"
        ds.InstitutionName, ds.BodyPartExamined, ds.Laterality = "H" * 80, "chest (thorax)", "left"
        ds.TimezoneOffsetFromUTC, ds.PatientIdentityRemoved, ds.OtherPatientNames = "Z", "YES", ["A^B", "C^D"]
        code = Dataset()
        code.CodeMeaning = "no code"
        ds.ProcedureCodeSequence = [code]
    return ds


def spec(header: Dataset, name: str, **changes: Any) -> ReportSpec:
    study = header.StudyInstanceUID
    base = ReportSpec(
        series_instance_uid=series_uid(study, Kind.SR, namespace="test"),
        sop_instance_uid=instance_uid(name, changes.get("sop_class_uid", COMPREHENSIVE_SR), namespace="test"),
        created=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
        link="https://node.example/v/r/5f0c",
        software_version="0.1.0",
        device_serial="SN-7",
        query_images=(
            QueryImage(
                header.SOPClassUID,
                OriginalUid(header.SOPInstanceUID),
                OriginalUid(header.get("SeriesInstanceUID", "1.2.3")),
                3,
                17,
                pseudo("query"),
            ),
        ),
    )
    return replace(base, **changes)


def reports() -> Iterator[tuple[str, Dataset]]:
    def report(name: str, header: Dataset, ans: Answer, **changes: Any) -> tuple[str, Dataset]:
        return name, build_sr(header, ans, spec=spec(header, name, **changes))

    headers: dict[str, Callable[[], Dataset]] = {
        "plain": plain,
        "spanish": spanish,
        "empty": empty,
        "hostile": hostile,
        **{f: (lambda f=f: charset(f)) for f in ("chrH31.dcm", "chrH32.dcm", "chrI2.dcm", "chrArab.dcm", "chrX2.dcm")},
    }
    for name, header in headers.items():
        for language in Language:
            yield report(f"{name}-{language}", header(), answer(5, calibrated=True), language=language)
    for kind in VerdictKind:
        for n in (0, 1, 10):
            for sop_class in (COMPREHENSIVE_SR, ENHANCED_SR):
                p = 0.0123 if kind is VerdictKind.NONE else None
                name = f"{kind}-{n}-{sop_class[-2:]}"
                yield report(
                    name, plain(), answer(n, kind, p=p), sop_class_uid=sop_class, language=list(Language)[n % 2]
                )
    yield report("two-hundred", plain(), answer(200, calibrated=True))
    yield report("no-key-slices", plain(), answer(0, VerdictKind.NOT_SEARCHABLE), query_images=())
    yield report("no-link", plain(), answer(2), link="", organisation="Hospital Clínico " * 9)
    old = Predecessor(OriginalUid(plain().StudyInstanceUID), "2.25.5", COMPREHENSIVE_SR, "2.25.6")
    yield report(
        "third", plain(), answer(3), instance_number=3, predecessors=(old, replace(old, sop_instance_uid="2.25.7"))
    )
    yield report("started", plain(), answer(3), series_started=datetime(2026, 3, 4, tzinfo=UTC))


def sheets() -> Iterator[tuple[str, Dataset]]:
    grey = np.tile(np.arange(200, dtype=np.uint8), (150, 1))
    for name, header in {"plain": plain, "empty": empty, "hostile": hostile, "spanish": spanish}.items():
        for n in (0, 1, 13):
            ds = header()
            s = spec(ds, f"sheet-{name}-{n}", language=list(Language)[n % 2])
            tiles = Tiles(answer(n), tuple(QueryTile(grey, i) for i in s.query_images), {1: grey})
            yield f"sheet-{name}-{n}", build_contact_sheet(ds, tiles, s)[0]
            yield f"pdf-{name}-{n}", build_pdf(ds, tiles, s)
    ds = plain()
    s = spec(ds, "many", language=Language.ES)
    tiles = Tiles(answer(200, calibrated=True), (QueryTile(grey),), dict.fromkeys(range(1, 201), grey))
    yield "sheet-many", build_contact_sheet(ds, tiles, s)[0]
    yield "pdf-many", build_pdf(ds, tiles, s)


def save(folder: Path, objects: Iterator[tuple[str, Dataset]]) -> list[Path]:
    paths = []
    for name, ds in objects:
        path = folder / f"{name}.dcm"
        path.write_bytes(to_bytes(ds))
        paths.append(path)
    return paths


def errors(name: str, paths: list[Path]) -> dict[str, list[str]]:
    try:
        found = validators.VALIDATORS[name](paths)
    except validators.NotInstalled as missing:
        pytest.skip(str(missing))
    assert found
    return {path.name: lines for path, lines in found.items() if lines}


@pytest.fixture(scope="module")
def sr_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save(tmp_path_factory.mktemp("sr"), reports())


@pytest.mark.parametrize("validator", list(validators.VALIDATORS))
def test_every_report_has_no_errors(sr_files: list[Path], validator: str) -> None:
    assert errors(validator, sr_files) == {}


@pytest.mark.parametrize("validator", ["dciodvfy", "dciodvfy (Debian)"])
def test_every_contact_sheet_and_pdf_has_no_errors(tmp_path: Path, validator: str) -> None:
    assert errors(validator, save(tmp_path, sheets())) == {}


def lacks_evidence(ds: Dataset) -> None:
    del ds.CurrentRequestedProcedureEvidenceSequence


def has_an_illegal_relationship(ds: Dataset) -> None:
    ds.ContentSequence[-1].RelationshipType = "SELECTED FROM"


def breaks_a_template(ds: Dataset) -> None:
    name = ds.ConceptNameCodeSequence[0]
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "126000", "DCM", "Imaging Measurement Report"
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "1500"
    ds.ContentTemplateSequence = [template]


@pytest.mark.parametrize(
    ("validator", "fault"),
    [
        ("dciodvfy", lacks_evidence),
        ("dciodvfy (Debian)", lacks_evidence),
        ("dsrdump", has_an_illegal_relationship),
        ("DicomSRValidator", breaks_a_template),
    ],
)
def test_each_validator_finds_what_it_is_there_for(
    tmp_path: Path, validator: str, fault: Callable[[Dataset], None]
) -> None:
    ds = build_sr(plain(), answer(1), spec=spec(plain(), "broken"))
    fault(ds)
    assert errors(validator, save(tmp_path, iter([("broken", ds)])))


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("chrH31.dcm", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("chrArab.dcm", "قباني^لنزار"),
        ("chrFren.dcm", "Buc^Jérôme"),
    ],
)
def test_another_reader_shows_the_name(tmp_path: Path, file: str, shown: str) -> None:
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump: not installed (apt-get install dcmtk)")
    header = charset(file)
    (path,) = save(tmp_path, iter([("name", build_sr(header, answer(1), spec=spec(header, file)))]))
    text = subprocess.run(["dsrdump", path], capture_output=True, text=True, check=True).stdout
    assert shown in text
