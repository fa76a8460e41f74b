"""The Similar Cases Report: a Comprehensive (or Enhanced) SR in the query's study, with a private root title.

Each case is a container whose subject is replaced by the other patient (PS3.3 C.17.5), so that no finding of a case
can be read as a finding of the patient in the header. Images of other patients are named by UID, never as IMAGE
items. The header is written by ``header``; highdicom builds the items. How readers show it: docs/structured-report.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    NumContentItem,
    ObserverContext,
    RelationshipTypeValues,
    TextContentItem,
    UIDRefContentItem,
)
from highdicom.sr.coding import CodedConcept
from highdicom.sr.value_types import ContentItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID

from dicomnode.domain import LABEL_SCHEME, Answer, Case, Finding, FindingStatus, Match
from dicomnode.errors import InputError
from dicomnode.report.codes import (
    DEVICE_UID,
    FINDING_SCHEMES,
    MANUFACTURER,
    PRODUCT,
    Concept,
    scheme_item,
    texts,
)
from dicomnode.report.header import LO_LENGTH, SH_LENGTH, clean_text, fits, new_object, to_bytes, uid_of
from dicomnode.report.spec import QueryImage, ReportSpec, is_uid
from dicomnode.report.uids import Kind, subject_uid
from dicomnode.report.words import BELOW_THRESHOLD, case_link, finding_text, query_slice, verdict_sentence

__all__ = ["build_sr", "to_bytes"]

CONTAINS: Final = RelationshipTypeValues.CONTAINS
HAS_OBS_CONTEXT: Final = RelationshipTypeValues.HAS_OBS_CONTEXT
HAS_PROPERTIES: Final = RelationshipTypeValues.HAS_PROPERTIES

PERCENT: Final = Code("%", "UCUM", "percent")
NO_UNITS: Final = Code("1", "UCUM", "no units")
PERCENT_DECIMALS, SCORE_DECIMALS = 1, 4


def _best(matches: Sequence[Match]) -> Match | None:
    return max(matches, key=lambda m: m.similarity, default=None)


def _uidref(name: CodedConcept | Code, uid: str, relationship: RelationshipTypeValues = CONTAINS) -> UIDRefContentItem:
    if not is_uid(uid):
        raise InputError("a UID of a similar case is not valid", place="answer", advice="run: dicomnode index verify")
    return UIDRefContentItem(name, UID(uid), relationship)


class _Tree:
    """Builds the content tree of one answer; holds what every item needs (language, texts, images by pseudonym)."""

    def __init__(self, answer: Answer, spec: ReportSpec) -> None:
        self.answer = answer
        self.spec = spec
        self.t = texts(spec.language)
        self.images = {image.pseudo_uid: image for image in spec.query_images}

    def name(self, concept: Concept) -> CodedConcept:
        return concept.coded(self.spec.language)

    def text(self, concept: Concept, value: str) -> TextContentItem:
        return TextContentItem(self.name(concept), value, CONTAINS)

    def container(self, concept: Concept, items: Sequence[ContentItem]) -> ContainerContentItem:
        # SEPARATE: with CONTINUOUS, readers drop every concept name (PS3.3 C.17.3.2.1 lets them).
        box = ContainerContentItem(self.name(concept), is_content_continuous=False, relationship_type=CONTAINS)
        box.ContentSequence = ContentSequence(items)
        return box

    def root(self) -> ContainerContentItem:
        t, answer = self.t, self.answer
        items: list[ContentItem] = [
            *LanguageOfContentItemAndDescendants(CodedConcept(self.spec.language.value, "RFC5646", t.language_name)),
            *self.observer(),
            self.text(Concept.VERDICT, verdict_sentence(answer, t)),
            self.text(Concept.NOTICE, t.notice),
        ]
        if self.spec.link:
            items.append(self.text(Concept.LINK, clean_text(self.spec.link)))
        if self.referenced_images():
            items.append(self.query_container())
        items += [self.case_container(case) for case in answer.cases]
        items.append(self.method_container())
        root = ContainerContentItem(self.name(Concept.REPORT), is_content_continuous=False)
        root.ContentSequence = ContentSequence(items)
        return root

    def observer(self) -> ObserverContext:
        serial = clean_text(self.spec.device_serial, LO_LENGTH) or None
        return ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=DEVICE_UID,
                name=PRODUCT,
                manufacturer_name=MANUFACTURER,
                model_name=f"{PRODUCT} {clean_text(self.spec.software_version, LO_LENGTH)}".strip(),
                serial_number=serial,
            ),
        )

    def referenced_images(self) -> list[QueryImage]:
        """The slices that matched, in the caller's order; all that were searched with when no case is listed."""
        matched = {m.query_instance for case in self.answer.cases for m in case.matches}
        return [i for i in self.images.values() if i.pseudo_uid in matched] or list(self.images.values())

    def query_container(self) -> ContainerContentItem:
        items: list[ContentItem] = []
        for image in self.referenced_images():
            items.append(TextContentItem(codes.DCM.Comment, query_slice(image, self.t), CONTAINS))
            items.append(
                ImageContentItem(
                    self.name(Concept.QUERY_IMAGE),
                    image.sop_class_uid,
                    image.sop_instance_uid,
                    relationship_type=CONTAINS,
                )
            )
        return self.container(Concept.QUERY_IMAGE, items)

    def case_container(self, case: Case) -> ContainerContentItem:
        # A replaced dimension of the observation context is repeated whole: procedure first, then subject
        # (order of TID 1001: TID 1005, then TID 1006 and 1007).
        items: list[ContentItem] = [
            _uidref(codes.DCM.ProcedureStudyInstanceUID, case.study_uid, HAS_OBS_CONTEXT),
            CodeContentItem(codes.DCM.SubjectClass, codes.DCM.Patient, HAS_OBS_CONTEXT),
            _uidref(codes.DCM.SubjectUID, subject_uid(case.subject), HAS_OBS_CONTEXT),
            TextContentItem(codes.DCM.SubjectID, clean_text(case.subject), HAS_OBS_CONTEXT),
            self.text(Concept.RANK, self.t.rank.format(rank=case.rank, total=len(self.answer.cases))),
        ]
        if self.answer.verdict.kind in BELOW_THRESHOLD:
            items.append(self.text(Concept.VERDICT, self.t.below_threshold))
        items.append(self.similarity(case.similarity))
        items += self.findings(case)
        items.append(self.text(Concept.MODALITY, clean_text(case.modality) or self.t.modality_unknown))
        if self.spec.link:
            items.append(self.text(Concept.LINK, case_link(clean_text(self.spec.link), case.rank)))
        return self.container(Concept.CASE, items + self.best_match(case))

    def similarity(self, value: float) -> NumContentItem:
        """Percent only where it was calibrated on this repository; a plain score of another concept otherwise."""
        if self.answer.calibrated:
            return NumContentItem(
                self.name(Concept.SIMILARITY), round(100 * value, PERCENT_DECIMALS), PERCENT, relationship_type=CONTAINS
            )
        return NumContentItem(
            self.name(Concept.SCORE), round(float(value), SCORE_DECIMALS), NO_UNITS, relationship_type=CONTAINS
        )

    def findings(self, case: Case) -> list[ContentItem]:
        if case.status is FindingStatus.PRESENT and case.findings:
            return [self.finding(f) for f in case.findings]
        return [self.text(Concept.FINDING, line) for line in finding_text(case, self.t)]

    def finding(self, finding: Finding) -> ContentItem:
        """A code where the scheme is known and the value is one; otherwise the same words as text."""
        system, code, display = (clean_text(v) for v in (finding.system, finding.code, finding.display))
        if system not in FINDING_SCHEMES or not code:
            label = ", ".join(v for v in (system, code) if v)
            return self.text(Concept.FINDING, f"{display or self.t.finding_uncoded} ({label})" if label else display)
        meaning = clean_text(display or code, LO_LENGTH)
        item = CodeContentItem(self.name(Concept.FINDING), _coded(system, code, meaning), CONTAINS)
        if meaning != (display or code):
            # Code Meaning holds 64 characters; the whole wording stays readable below it.
            item.ContentSequence = ContentSequence(
                [TextContentItem(codes.DCM.Comment, display or code, HAS_PROPERTIES)]
            )
        return item

    def best_match(self, case: Case) -> list[ContentItem]:
        """The pair of slices behind the rank: ours by number, the other patient's by UID."""
        items: list[ContentItem] = []
        match = _best(case.matches)
        if match is not None and (image := self.images.get(match.query_instance)) is not None:
            items.append(self.text(Concept.QUERY_IMAGE, self.t.own_study.format(slice=query_slice(image, self.t))))
        items.append(_uidref(self.name(Concept.STUDY_UID), case.study_uid))
        items.append(_uidref(self.name(Concept.SERIES_UID), case.series_uid))
        if match is not None:
            items.append(_uidref(self.name(Concept.INSTANCE_UID), match.instance))
        return items

    def method_container(self) -> ContainerContentItem:
        answer = self.answer
        facts: dict[str, Any] = {"model_id": answer.model_id, "verdict": answer.verdict.kind.value}
        if answer.verdict.p is not None:
            facts["p"] = f"{answer.verdict.p:.6g}"
        facts |= {k: v for k, v in sorted(answer.search.items()) if isinstance(v, (str, int, float, bool))}
        parameters = [clean_text(f"{key}={value}") for key, value in facts.items()]
        algorithm = AlgorithmIdentification(
            name=f"{PRODUCT} image similarity search",
            version=clean_text(self.spec.software_version, LO_LENGTH) or "unknown",
            parameters=parameters,
        )
        return self.container(Concept.METHOD, [*algorithm, self.text(Concept.SEARCHED, str(answer.searched))])


def _coded(system: str, code: str, meaning: str) -> CodedConcept:
    """A code item; highdicom takes Long Code Value over 16 characters, but a URN-like one only as URN Code Value.

    URN Code Value forbids a designator (PS3.3 8.1), which our schemes need, so long values always stay Long Code Value.
    """
    item = CodedConcept(code[:SH_LENGTH], system, meaning)
    if not fits(code, SH_LENGTH):
        del item.CodeValue
        item.LongCodeValue = code
    return item


def _references(rows: Iterable[tuple[str, str, str, str]]) -> list[Dataset]:
    """Hierarchical SOP Instance Reference macro (PS3.3 table C.17-3) from (study, series, SOP class, SOP instance)."""
    studies: dict[str, dict[str, dict[str, str]]] = {}
    for study, series, sop_class, instance in rows:
        studies.setdefault(study, {}).setdefault(series, {})[instance] = sop_class
    items: list[Dataset] = []
    for study, by_series in studies.items():
        item = Dataset()
        item.StudyInstanceUID = study
        item.ReferencedSeriesSequence = []
        for series, instances in by_series.items():
            ref = Dataset()
            ref.SeriesInstanceUID = series
            ref.ReferencedSOPSequence = []
            for instance, sop_class in instances.items():
                sop = Dataset()
                sop.ReferencedSOPClassUID, sop.ReferencedSOPInstanceUID = sop_class, instance
                ref.ReferencedSOPSequence.append(sop)
            item.ReferencedSeriesSequence.append(ref)
        items.append(item)
    return items


def build_sr(header: Dataset, answer: Answer, *, spec: ReportSpec) -> Dataset:
    """The answer as a Structured Report of the query's patient and study.

    Parameters
    ----------
    header : Dataset
        An original instance of the query study (identified); pixel data is not needed.
    answer : Answer
        Verdict and cases, de-identified; with no case the report says so.
    spec : ReportSpec
        UIDs, moment, language, link, query images, predecessors.

    Returns
    -------
    Dataset
        Comprehensive or Enhanced SR with file meta, COMPLETE, UNVERIFIED, PRELIMINARY. Write it with ``to_bytes``.

    Raises
    ------
    InputError
        When the query lacks a valid Study, Series or SOP Instance UID, or a case has a UID that is not one.
    """
    t = texts(spec.language)
    tree = _Tree(answer, spec)
    ds = new_object(header, spec, kind=Kind.SR, sop_class_uid=spec.sop_class_uid, modality="SR")
    ds.SeriesDescription = t.series_description
    ds.ReferencedPerformedProcedureStepSequence = []

    ds.CompletionFlag = "COMPLETE"
    ds.VerificationFlag = "UNVERIFIED"
    ds.PreliminaryFlag = "PRELIMINARY"
    ds.PerformedProcedureCodeSequence = []
    if spec.predecessors:
        ds.PredecessorDocumentsSequence = _references(
            (p.study_instance_uid, p.series_instance_uid, p.sop_class_uid, p.sop_instance_uid)
            for p in spec.predecessors
        )
    study = ds.StudyInstanceUID
    images = tree.referenced_images()
    # Without key slices (nothing could be searched) the instance that supplied the header is the evidence.
    ds.CurrentRequestedProcedureEvidenceSequence = _references(
        [(study, i.series_instance_uid, i.sop_class_uid, i.sop_instance_uid) for i in images]
        or [(study, *(uid_of(header, k) for k in ("SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")))]
    )
    ds.update(tree.root())
    if any(f.system == LABEL_SCHEME for case in answer.cases for f in case.findings):
        ds.CodingSchemeIdentificationSequence.append(
            scheme_item(LABEL_SCHEME, clean_text(spec.organisation, LO_LENGTH))
        )
    return ds
