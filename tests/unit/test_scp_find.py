"""C-FIND against a receiver with a real catalogue, vault and index: levels, matching, limits, and similar images."""

from __future__ import annotations

import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from archive_samples import an_answer, record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_samples import Clusters, slices
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)
from pynetdicom import AE
from pynetdicom import _config as pynetdicom_config
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from dicomnode.archive.answers import Answers, QuerySlice
from dicomnode.archive.catalogue import Catalogue, StoredInstance
from dicomnode.archive.database import open_engine
from dicomnode.archive.finding import Finder
from dicomnode.archive.schema import metadata
from dicomnode.config import Settings
from dicomnode.deid.vault import KeySource, Vault
from dicomnode.domain import ModelId, OriginalUid, Pseudonym, PseudoUid, Role
from dicomnode.errors import VaultError
from dicomnode.index.cases import QueryStudy
from dicomnode.index.repository import VectorIndex
from dicomnode.node import Node
from dicomnode.scp import find
from dicomnode.scp.access import Access
from dicomnode.scp.find import find_service
from dicomnode.scp.server import ReceiverServer, ServerOptions, bind_listener
from dicomnode.scp.spool import Spool
from dicomnode.scp.status import NOT_AUTHORISED
from dicomnode.workflow.querying import RepositoryQueries

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")

FIND = StudyRootQueryRetrieveInformationModelFind
MODEL, DIM = ModelId("sha256:one"), 32
SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
ACCESS = Access.of(
    [("DICOMNODE", Role.INDEX_QUERY)],
    [
        ("PACS", ["echo", "store", "find", "similar"]),
        ("BROWSER", ["find"]),
        ("ASKER", ["similar"]),
        ("MODALITY", ["store"]),
    ],
)
PATIENTS = 12


class Counted:
    """Counts what a receiver counts."""

    def __init__(self) -> None:
        self.finds: list[str] = []
        self.queries: list[str] = []

    def received(self, outcome: str, size: int = 0) -> None: ...
    def association(self) -> None: ...
    def rejected_association(self, reason: str) -> None: ...

    def find(self, outcome: str) -> None:
        self.finds.append(outcome)

    def outcome(self, earlier: int) -> str:
        """How the query after ``earlier`` others ended; it is counted after its peer has the last response."""
        until = time.monotonic() + 10
        while len(self.finds) == earlier and time.monotonic() < until:
            time.sleep(0.01)
        return self.finds[earlier]

    def query(self, source: str) -> None:
        self.queries.append(source)


class Here:
    """A receiver in this process before a repository of ``PATIENTS`` patients; the last one is excluded."""

    def __init__(self, folder: Path) -> None:
        self.engine = open_engine(folder / "catalogue.sqlite3")
        metadata.create_all(self.engine)
        self.catalogue = Catalogue(self.engine)
        self.answers = Answers(self.engine)
        self.vault = Vault.open(folder / "vault.sqlite3", KeySource(default_file=folder / "vault.key"))
        self.index = VectorIndex(folder / "index", self.engine, MODEL, DIM)
        self.queries = RepositoryQueries(
            Finder(self.engine), self.answers, lambda: self.vault, lambda: [self.index], k=5
        )
        clusters = Clusters.make(seed=1, clusters=3, dim=DIM)
        for n in range(PATIENTS):
            self._add(n, clusters.study(n % 3, 4))
        self.catalogue.exclude_patient(patient(PATIENTS - 1))
        self.counts = Counted()
        self.spool = Spool.open(folder / "identified", reserve=0)
        self.listener = bind_listener("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        options = ServerOptions(ACCESS, services=(find_service(lambda: self.queries),), counts=self.counts, idle_s=20)
        self.server = ReceiverServer(self.listener, self.spool, options)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def _add(self, n: int, vectors: np.ndarray) -> None:
        modality = "MR" if n % 4 == 3 else "CT"
        self.catalogue.add_study(
            [
                StoredInstance(
                    record(
                        i + 1,
                        self.study(n),
                        patient(n),
                        uid=self.instance(n, i),
                        series_uid=self.series(n),
                        modality=modality,
                        sop_class=MRImageStorage if modality == "MR" else CTImageStorage,
                        study_date=f"202301{n + 1:02d}" if n else "",
                        sex="F" if n % 2 else "M",
                        study_description=f"Thorax [nativ] 10% {n}",
                    ),
                    f"{n}/{i}.dcm",
                    "0" * 64,
                )
                for i in range(4)
            ],
            source="received",
        )
        refs = [
            r.__class__(self.instance(n, i), self.series(n), self.study(n), patient(n), 0, r.z)
            for i, r in enumerate(slices(patient(n), self.study(n), 4))
        ]
        self.index.add(refs, vectors)

    def study(self, n: int) -> PseudoUid:
        return self.vault.uid(OriginalUid(f"1.2.{n + 1}"))

    def series(self, n: int) -> PseudoUid:
        return self.vault.uid(OriginalUid(f"1.2.{n + 1}.1"))

    def instance(self, n: int, i: int) -> PseudoUid:
        return self.vault.uid(OriginalUid(f"1.2.{n + 1}.1.{i + 1}"))

    def close(self) -> None:
        self.server.stop(1)
        self.spool.close()
        self.index.close()

    def associate(self, calling: str = "PACS", syntax: str | None = None, sop_class: str = FIND, **how):
        ae = AE(ae_title=calling)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60
        ae.add_requested_context(sop_class, [syntax] if syntax else list(SYNTAXES))
        ae.add_requested_context(Verification)
        return ae.associate("127.0.0.1", self.port, ae_title="DICOMNODE", **how)

    def ask(self, identifier: Dataset, **how) -> tuple[list[Dataset], list[int], Dataset]:
        """Matches, the statuses of all responses, and the last response."""
        assoc = self.associate(**how)
        assert assoc.is_established
        responses = list(assoc.send_c_find(identifier, FIND))
        assoc.release()
        return [ds for _, ds in responses if ds is not None], [s.Status for s, _ in responses], responses[-1][0]


def patient(n: int) -> Pseudonym:
    return Pseudonym(f"DN-AAAAAA{n:04d}")


def identifier(level: str = "STUDY", **keys) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return ds


def similar_to(uid: str, maximum: int | None = None, *, block: int = 0x10, level: str = "IMAGE", **keys) -> Dataset:
    ds = identifier(level, SOPInstanceUID="", StudyInstanceUID="", PatientID="", **keys)
    ds.add_new((0x0099, block), "LO", "DICOMNODE 1.0")
    ds.add_new((0x0099, block << 8 | 1), "UI", uid)
    ds.add_new((0x0099, block << 8 | 2), "IS", maximum)
    ds.add_new((0x0099, block << 8 | 3), "FD", None)
    ds.add_new((0x0099, block << 8 | 4), "IS", None)
    return ds


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Iterator[Here]:
    running = Here(tmp_path_factory.mktemp("find"))
    yield running
    running.close()


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_study_but_those_of_excluded_patients_is_found_in_every_transfer_syntax(here, syntax):
    found, statuses, _ = here.ask(identifier(StudyInstanceUID="", PatientID=""), syntax=syntax)
    assert [ds.StudyInstanceUID for ds in found] == [here.study(n) for n in range(PATIENTS - 1)]
    assert statuses == [0xFF00] * (PATIENTS - 1) + [0x0000]


def test_an_answer_says_where_it_is_in_what_characters_and_holds_pseudonyms(here):
    asked = identifier(
        StudyInstanceUID=here.study(2), PatientName="", PatientID="", PatientSex="", StudyDate="", StudyTime="",
        AccessionNumber="", StudyID="", StudyDescription="", ModalitiesInStudy="", SOPClassesInStudy="",
        NumberOfStudyRelatedSeries="", NumberOfStudyRelatedInstances="", NumberOfPatientRelatedStudies="",
        NumberOfPatientRelatedSeries="", NumberOfPatientRelatedInstances="",
    )  # fmt: skip
    (answer,), statuses, _ = here.ask(asked)
    assert statuses == [0xFF00, 0x0000]
    assert answer.SpecificCharacterSet == "ISO_IR 192"
    assert (answer.RetrieveAETitle, answer.InstanceAvailability) == ("DICOMNODE", "ONLINE")
    assert (answer.PatientID, str(answer.PatientName)) == (patient(2), patient(2))
    assert (answer.StudyTime, answer.AccessionNumber, answer.StudyID) == ("", "", "")
    assert (answer.StudyDate, answer.PatientSex, answer.ModalitiesInStudy) == ("20230103", "M", "CT")
    assert answer.SOPClassesInStudy == CTImageStorage
    assert (answer.NumberOfStudyRelatedSeries, answer.NumberOfStudyRelatedInstances) == (1, 4)
    assert (answer.NumberOfPatientRelatedStudies, answer.NumberOfPatientRelatedSeries) == (1, 1)
    assert answer.NumberOfPatientRelatedInstances == 4


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("PatientID", "DN-AAAAAA0003", {3}),
        ("PatientID", "dn-aaaaaa0003", set()),
        ("PatientName", "dn-aaaaaa0003", {3}),
        ("PatientName", "dn-AAAA*3", {3}),
        ("PatientID", "DN-*", set(range(11))),
        ("PatientID", "DN-AAAAAA000?", set(range(10))),
        ("PatientID", "*", set(range(11))),
        ("PatientSex", "M", {0, 2, 4, 6, 8, 10}),
        ("PatientSex", "M\\F", set(range(11))),
        ("StudyDescription", "Thorax [nativ] 10% 7", {7}),
        ("StudyDescription", "Thorax [n*%*7", {7}),
        ("StudyDescription", "thorax*", set()),
        ("StudyDescription", "Thorax _nativ*", set()),
        ("ModalitiesInStudy", "MR", {3, 7}),
        ("SOPClassesInStudy", MRImageStorage, {3, 7}),
        ("StudyDate", "20230104", {0, 3}),  # study 0 has no date: unknown matches (PS3.4 C.2.2.1.2)
        ("StudyDate", "2023.01.04", {0, 3}),
        ("StudyDate", "20230103-20230105", {0, 2, 3, 4}),
        ("StudyDate", "20230110-", {0, 9, 10}),
        ("StudyDate", "-20230102", {0, 1}),
        ("StudyDate", "20230105-20230103", {0}),
        ("StudyTime", "120000-", set(range(11))),  # the repository keeps none
        ("AccessionNumber", "A1", set()),
        ("StudyID", "1", set()),
    ],
)
def test_studies_match_by_the_rules_of_each_key(here, key, value, expected):
    found, statuses, _ = here.ask(identifier(StudyInstanceUID="", **{key: value}))
    assert {ds.StudyInstanceUID for ds in found} == {here.study(n) for n in expected}
    assert statuses[-1] == 0x0000


def test_uids_are_found_as_a_list_and_as_the_hospital_knows_them_but_answered_pseudonymous(here):
    found, _, _ = here.ask(identifier(StudyInstanceUID=["1.2.2", str(here.study(4)), "1.9"]))
    assert [ds.StudyInstanceUID for ds in found] == [here.study(1), here.study(4)]


def test_series_and_images_are_found_below_their_unique_keys(here):
    keys = {"Modality": "", "SeriesNumber": "", "SeriesDescription": "", "BodyPartExamined": "",
            "NumberOfSeriesRelatedInstances": ""}  # fmt: skip
    (series,), _, _ = here.ask(identifier("SERIES", StudyInstanceUID="1.2.3", SeriesInstanceUID="", **keys))
    assert (series.StudyInstanceUID, series.SeriesInstanceUID) == (here.study(2), here.series(2))
    assert (series.Modality, series.SeriesNumber, series.NumberOfSeriesRelatedInstances) == ("CT", 2, 4)
    assert (series.SeriesDescription, series.BodyPartExamined) == ("Thorax", "CHEST")
    above = {"StudyInstanceUID": series.StudyInstanceUID, "SeriesInstanceUID": "1.2.3.1"}
    keys = {"SOPClassUID": "", "Rows": "", "Columns": "", "NumberOfFrames": ""}
    images, _, _ = here.ask(identifier("IMAGE", **above, SOPInstanceUID="", InstanceNumber="", **keys))
    assert [ds.SOPInstanceUID for ds in images] == [here.instance(2, i) for i in range(4)]
    assert (images[0].Rows, images[0].Columns, images[0].NumberOfFrames) == (64, 64, 1)
    (third,), _, _ = here.ask(identifier("IMAGE", **above, SOPInstanceUID="", InstanceNumber="3"))
    assert third.SOPInstanceUID == here.instance(2, 2)


def test_keys_that_are_not_served_are_left_out_of_the_answer_which_says_so(here):
    asked = identifier(StudyInstanceUID=here.study(1), PatientBirthDate="", Modality="CT")
    asked.ProcedureCodeSequence = [Dataset()]
    (answer,), statuses, _ = here.ask(asked)
    assert statuses == [0xFF01, 0x0000]
    assert not {"PatientBirthDate", "Modality", "ProcedureCodeSequence"} & {e.keyword for e in answer}


def test_a_number_that_is_only_returned_does_not_match(here):
    found, statuses, _ = here.ask(identifier(StudyInstanceUID=here.study(1), NumberOfStudyRelatedSeries="9"))
    assert (len(found), statuses) == (1, [0xFF01, 0x0000])


@pytest.mark.parametrize(
    ("asked", "status", "comment"),
    [
        (identifier("PATIENT"), 0xA900, "QueryRetrieveLevel"),
        (identifier(""), 0xA900, "QueryRetrieveLevel"),
        (identifier("SERIES", SeriesInstanceUID=""), 0xA900, "StudyInstanceUID"),
        (identifier("SERIES", StudyInstanceUID=["1.2", "1.3"]), 0xA900, "StudyInstanceUID"),
        (identifier("IMAGE", SOPInstanceUID="1.2.3.1.1"), 0xA900, "StudyInstanceUID"),
        (identifier("IMAGE", StudyInstanceUID="1.2.3"), 0xA900, "SeriesInstanceUID"),
        (identifier(StudyDate="yesterday"), 0xC000, "StudyDate"),
        (identifier(StudyDate="20231301"), 0xC000, "StudyDate"),
        (identifier(StudyDate="-"), 0xC000, "StudyDate"),
        (identifier(StudyInstanceUID="1.2.*"), 0xC000, "StudyInstanceUID"),
        (similar_to("1.2.3.1.1", level="STUDY"), 0xA900, "QueryRetrieveLevel"),
        (similar_to("1.2*"), 0xC000, "(0099,1001)"),
        (similar_to("1.2.3.1.1", 0), 0xC000, "(0099,1002)"),
        (similar_to("1.2.3.1.1", 1001), 0xC000, "(0099,1002)"),
        (similar_to(""), 0xA900, "StudyInstanceUID"),
    ],
)
def test_a_request_that_cannot_be_answered_gets_its_status_and_one_line(here, asked, status, comment):
    found, statuses, last = here.ask(asked)
    assert (found, statuses) == ([], [status])
    assert last.ErrorComment.startswith(comment)


def test_peers_get_the_services_they_were_given(here):
    everything, similar = identifier(StudyInstanceUID=""), similar_to("1.2.1.1.1")
    assert here.ask(everything, calling="BROWSER")[1][-1] == 0x0000
    assert here.ask(similar, calling="BROWSER")[1] == [NOT_AUTHORISED]
    assert here.ask(everything, calling="ASKER")[1] == [NOT_AUTHORISED]
    assert here.ask(similar, calling="ASKER")[1][-1] == 0x0000
    for asked in (everything, similar):
        assert here.ask(asked, calling="MODALITY")[1] == [NOT_AUTHORISED]


def test_patient_root_and_retrieval_are_not_accepted(here):
    for sop_class in (PatientRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove):
        assoc = here.associate(sop_class=sop_class)
        assert [cx.abstract_syntax for cx in assoc.rejected_contexts] == [sop_class]
        assoc.release()


def test_relational_queries_are_declined_when_they_are_negotiated(here):
    item = SOPClassExtendedNegotiation()
    item.sop_class_uid, item.service_class_application_information = FIND, b"\1\1\1"
    assoc = here.associate(ext_neg=[item])
    assert assoc.acceptor.sop_class_extended == {FIND: b"\0\0\0"}
    assoc.release()


def test_more_matches_than_the_limit_are_out_of_resources(here, monkeypatch):
    monkeypatch.setattr(find, "MAX_MATCHES", 4)
    earlier = len(here.counts.finds)
    found, statuses, last = here.ask(identifier(StudyInstanceUID=""))
    assert (len(found), statuses[-1]) == (4, 0xA700)
    assert last.ErrorComment == "more than 4 matches: narrow the query"
    assert here.counts.outcome(earlier) == "too-many"


def test_a_cancelled_query_stops(here, monkeypatch):
    """Rows come slowly once the first is there, as from a large repository."""
    go = threading.Event()
    rows = here.queries.find

    def slowly(*arguments):
        for n, row in enumerate(rows(*arguments)):
            if n:
                go.wait(10)
                time.sleep(0.5)
            yield row

    monkeypatch.setattr(here.queries, "find", slowly)
    assoc = here.associate()
    statuses, earlier = [], len(here.counts.finds)
    for status, _ in assoc.send_c_find(identifier(StudyInstanceUID=""), FIND, msg_id=7):
        if not statuses:
            assoc.send_c_cancel(7, query_model=FIND)
            go.set()
        statuses.append(status.Status)
    assert (statuses[0], statuses[-1]) == (0xFF00, 0xFE00)
    assert len(statuses) < PATIENTS - 1
    assert here.counts.outcome(earlier) == "cancelled"
    assert assoc.send_c_echo().Status == 0x0000
    assoc.release()


def test_a_page_boundary_loses_and_repeats_nothing(here, monkeypatch):
    monkeypatch.setattr("dicomnode.archive.finding.PAGE", 4)
    found, _, _ = here.ask(identifier(StudyInstanceUID="", ModalitiesInStudy=""))
    assert [ds.StudyInstanceUID for ds in found] == [here.study(n) for n in range(PATIENTS - 1)]
    assert [ds.ModalitiesInStudy for ds in found].count("MR") == 2


def ranked(here: Here, n: int, k: int, allow=None) -> list[tuple]:
    """What the retriever says of study ``n``, asked with its own vectors."""
    now = here.index.searcher.refresh()
    rows = now.rows_of(now.names.study_of[here.study(n)])
    refs = slices(patient(n), here.study(n), 4)
    query = QueryStudy(refs, now.matrix[rows], patient(n), here.study(n), now.shows(now.names.study_of[here.study(n)]))
    cases = here.index.retriever.retrieve(query, k, allow=allow).cases
    return [(c.study_uid, c.matches[0].instance, c.similarity, c.rank) for c in cases]


def seen(found: list[Dataset], block: int = 0x10) -> list[tuple]:
    def private(ds: Dataset, number: int):
        value = ds[0x0099, block << 8 | number].value
        if isinstance(value, bytes):  # implicit VR, and no private dictionary on this side
            return struct.unpack("<d", value)[0] if number == 3 else int(value)
        return value

    return [(ds.StudyInstanceUID, ds.SOPInstanceUID, private(ds, 3), private(ds, 4)) for ds in found]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("block", [0x10, 0xFE])
def test_similar_images_come_one_a_case_in_the_order_of_the_retriever(here, syntax, block):
    found, statuses, _ = here.ask(similar_to("1.2.1.1.2", block=block), syntax=syntax)
    assert seen(found, block) == ranked(here, 0, 5)
    assert statuses == [0xFF00] * 5 + [0x0000]
    assert here.counts.queries[-1] == "find"
    assert {str(ds[0x0099, block].value) for ds in found} == {"DICOMNODE 1.0"}


def test_similar_images_exclude_their_own_patient_and_excluded_ones(here):
    found, _, _ = here.ask(similar_to(here.instance(0, 0), 1000))
    assert {ds.PatientID for ds in found} == {patient(n) for n in range(1, PATIENTS - 1)}


def test_standard_keys_filter_inside_the_search(here):
    found, _, _ = here.ask(similar_to("1.2.1.1.1", 2, Modality="MR", StudyDate="20230101-20230106"))
    assert [ds.StudyInstanceUID for ds in found] == [here.study(3)]
    assert {ds.Modality for ds in found} == {"MR"}
    women = {here.study(n) for n in range(1, PATIENTS, 2)}
    found, _, _ = here.ask(similar_to("1.2.1.1.1", 3, PatientSex="F"))
    assert seen(found) == ranked(here, 0, 3, allow=women)
    assert here.ask(similar_to("1.2.1.1.1", Modality="XA"))[1] == [0x0000]


@pytest.mark.parametrize("n", [1000, PATIENTS])
def test_an_unknown_image_and_one_of_an_excluded_patient_have_no_similar_ones(here, n):
    assert here.ask(similar_to(f"1.2.{n}.1.1"))[1] == [0x0000]


def test_an_image_of_a_kept_query_has_similar_ones(here):
    now = here.index.searcher.refresh()
    rows = now.rows_of(now.names.study_of[here.study(5)])
    uids = [here.vault.uid(OriginalUid(f"1.5.{i}")) for i in range(6)]
    kept = [QuerySlice(uid, 0, "p", now.matrix[row]) for uid, row in zip(uids, rows, strict=False)]
    here.answers.add(PseudoUid("2.25.77"), uids, an_answer(), role=Role.QUERY, slices=kept, patient=patient(5))
    for uid in ("1.5.0", "1.5.5"):  # a key slice, and one that is none
        found, _, _ = here.ask(similar_to(uid, 4))
        assert [ds.StudyInstanceUID for ds in found] == [uid for uid, *_ in ranked(here, 5, 4)]


def test_an_answer_about_a_similar_image_has_the_keys_that_were_asked_for(here):
    asked = similar_to("1.2.1.1.1", 2)
    del asked.SOPInstanceUID, asked.StudyInstanceUID
    found, statuses, _ = here.ask(asked)
    assert statuses == [0xFF00, 0xFF00, 0x0000]
    assert all("PatientID" in ds and "SOPInstanceUID" not in ds for ds in found)


def test_private_keys_without_a_value_are_no_similarity_query(here):
    asked = similar_to("", level="IMAGE")
    asked.StudyInstanceUID, asked.SeriesInstanceUID = here.study(0), here.series(0)
    found, statuses, _ = here.ask(asked)
    assert (len(found), statuses) == (4, [0xFF01] * 4 + [0x0000])


def test_what_comes_into_the_repository_is_found_by_the_next_query(tmp_path):
    running = Here(tmp_path)
    try:
        before = {ds.StudyInstanceUID for ds in running.ask(similar_to("1.2.1.1.1", 50))[0]}
        running._add(30, Clusters.make(seed=1, clusters=3, dim=DIM).study(0, 4))
        assert len(running.ask(identifier(StudyInstanceUID="1.2.31"))[0]) == 1
        after = {ds.StudyInstanceUID for ds in running.ask(similar_to("1.2.1.1.1", 50))[0]}
        assert after - before == {running.study(30)}
        running.index.remove_study(running.study(30))
        running.catalogue.remove_study(running.study(30))
        assert {ds.StudyInstanceUID for ds in running.ask(similar_to("1.2.1.1.1", 50))[0]} == before
        assert running.ask(similar_to("1.2.31.1.1"))[1] == [0x0000]
    finally:
        running.close()


def test_peers_that_ask_at_once_get_the_same_answers(here):
    with ThreadPoolExecutor(8) as pool:
        asked = [similar_to("1.2.1.1.1") if n % 2 else identifier(StudyInstanceUID="") for n in range(16)]
        answers = list(pool.map(lambda ds: [a.StudyInstanceUID for a in here.ask(ds)[0]], asked))
    assert {tuple(a) for a in answers[1::2]} == {tuple(uid for uid, *_ in ranked(here, 0, 5))}
    assert {tuple(a) for a in answers[::2]} == {tuple(here.study(n) for n in range(PATIENTS - 1))}


@pytest.mark.parametrize("error", [VaultError("the key cannot be read"), RuntimeError("1.2.1.1.1")])
def test_a_repository_that_cannot_be_read_is_a_failure_without_details(here, monkeypatch, error):
    def fails(*_arguments):
        raise error

    monkeypatch.setattr(here.queries, "pseudonymous", fails)
    earlier = len(here.counts.finds)
    found, statuses, last = here.ask(identifier(StudyInstanceUID="1.2.1.1.1"))
    assert (found, statuses) == ([], [0xC000])
    assert "1.2.1" not in last.ErrorComment
    assert here.counts.outcome(earlier) == "failed"


def test_a_node_that_nobody_may_query_offers_no_query(tmp_path):
    peer = {"name": "ct", "ae_title": "CT"}
    for services, offered in ((("echo", "store"), 0), (("find",), 1), (("similar",), 1)):
        node = Node(Settings(node={"data_dir": tmp_path}, dicom={"peers": [{**peer, "services": services}]}))
        assert len(node.find_services()) == offered
    assert list(tmp_path.iterdir()) == []  # nothing is opened before somebody asks


def send_raw(assoc, *identifiers: bytes | None) -> list[int | None]:
    """C-FIND with these bytes as identifiers; the last status of each, None where the association ended."""
    assoc._reactor_checkpoint.clear()  # as pynetdicom's own send_c_find, which encodes data sets only
    time.sleep(0.02)  # and its reactor really waits: until then it would take the answer away
    while not assoc._is_paused:
        time.sleep(0.001)
    context = next(cx for cx in assoc.accepted_contexts if cx.abstract_syntax == FIND)
    statuses: list[int | None] = []
    for number, data in enumerate(identifiers, start=1):
        request = C_FIND()
        request.MessageID, request.Priority, request.AffectedSOPClassUID = number, 0, FIND
        if data is not None:
            request.Identifier = BytesIO(data)
        assoc.dimse.send_msg(request, context.context_id)
        status: int | None = 0xFF00
        while status in (0xFF00, 0xFF01):
            _, response = assoc.dimse.get_msg(block=True)
            status = None if response is None else int(response.Status)
        statuses.append(status)
    assoc._reactor_checkpoint.set()
    return statuses


def encoded(ds: Dataset, syntax: str) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, syntax == ImplicitVRLittleEndian
    write_dataset(buffer, ds)
    return buffer.getvalue()


def test_a_request_without_an_identifier_has_no_level(here):
    assoc = here.associate()
    good = encoded(identifier(StudyInstanceUID=""), assoc.accepted_contexts[0].transfer_syntax[0])
    assert send_raw(assoc, None, good) == [0xA900, 0x0000]
    assoc.release()


def test_an_identifier_without_end_ends_the_association(here):
    assoc = here.associate()
    assert send_raw(assoc, b"\x08\0\x60\0" + b"\0" * (2 << 20)) == [None]
    assert here.ask(identifier(StudyInstanceUID=""))[1][-1] == 0x0000


def test_a_deflated_identifier_that_inflates_without_end_is_refused(here, monkeypatch):
    monkeypatch.setattr(pynetdicom_config, "LOG_REQUEST_IDENTIFIERS", False)  # as in every receiver
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    level = encoded(identifier(StudyInstanceUID=""), ExplicitVRLittleEndian)
    # (0043,1001) OB of 64 MiB: 64 kB on the wire
    head = b"\x43\0\x01\x10OB\0\0" + struct.pack("<I", 64 << 20)
    bomb = packer.compress(level + head) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    plain = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    good = plain.compress(level) + plain.flush()
    assoc = here.associate(syntax=DeflatedExplicitVRLittleEndian)
    tracemalloc.start()
    try:
        assert send_raw(assoc, bomb, good) == [0xC000, 0x0000]
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assoc.release()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_identifier_that_is_none_gets_a_status_and_the_association_goes_on(here, data):
    syntax = data.draw(st.sampled_from(SYNTAXES[:2]))
    good = encoded(similar_to("1.2.1.1.1", 2, StudyDate="20230101-", Modality="CT"), syntax)
    raw = bytearray(good)
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=6)):
        raw[place] = value
    raw = raw[: data.draw(st.integers(1, len(raw)))]
    assoc = here.associate(syntax=syntax)
    before = len(here.counts.finds)
    first, second = send_raw(assoc, bytes(raw), good)
    assert first in {0x0000, 0xA900, 0xC000}
    assert second == 0x0000
    assert "failed" not in here.counts.finds[before:]
    assoc.release()
