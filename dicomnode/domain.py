"""The words of the project as small frozen types.

Two kinds of UID never mix: what came from the hospital (``OriginalUid``, identified zone only) and what the
repository knows (``PseudoUid``). They are different types so that mypy refuses the mix. Everything in an
``Answer`` is de-identified; the report adds the identified header in the identified zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, NewType

OriginalUid = NewType("OriginalUid", str)
PseudoUid = NewType("PseudoUid", str)
Pseudonym = NewType("Pseudonym", str)
ModelId = NewType("ModelId", str)
Millimetres = NewType("Millimetres", float)

SCHEME = "99DICOMNODE"
UNTOLD = frozenset({"", "OT", "SC"})  # a picture or a capture: of what, its modality does not tell
# Implementation Class UID (PS3.7 D.3.3.2) of everything the node writes or sends; drawn once, never changed.
IMPLEMENTATION_CLASS_UID = "2.25.233715491814202644375068918876066735440"
IMPLEMENTATION_VERSION_NAME = "DICOMNODE_1"  # at most 16 characters (VR SH)
LABEL_SCHEME = "99LABEL"  # a word from a LABELS.csv, not a terminology


class Role(StrEnum):
    """What an AE title of ours does with a study (``[[dicom.ae_titles]] role``)."""

    INDEX_QUERY = "index+query"
    QUERY = "query"
    INDEX = "index"

    @property
    def keeps(self) -> bool:
        """Whether the study goes into the repository."""
        return self is not Role.QUERY

    @property
    def answers(self) -> bool:
        """Whether an answer is computed and sent."""
        return self is not Role.INDEX


class FindingStatus(StrEnum):
    """What is known about a case. Unknown never counts as negative."""

    PRESENT = "present"
    NONE = "none"
    UNKNOWN = "unknown"


class VerdictKind(StrEnum):
    """How far the nearest cases may be called similar."""

    SIMILAR = "similar"
    NONE = "none"
    REPOSITORY_TOO_SMALL = "repository-too-small"
    NOT_SEARCHABLE = "not-searchable"


class ImageKind(StrEnum):
    """What an image shows, as the input gate judges its pixels; everything but ``SLICE`` is refused."""

    SLICE = "slice"
    PHOTOGRAPH = "photograph"
    PAGE = "page"
    RADIOGRAPH = "radiograph"
    ULTRASOUND = "ultrasound"
    NOISE = "noise"
    BLANK = "blank"
    COLOUR = "colour"
    OTHER = "other"  # no slice, and nothing else for certain


MIN_PATIENTS_FOR_P = 20  # conformal p is at least 1/(n+1): under 20 patients .05 is out of reach
P_NONE = 0.05

# By language: one image, most of a study's images, and what is seen instead. People read these; rules do not.
_REFUSALS: dict[str, tuple[str, str, str, dict[ImageKind, str]]] = {
    "en": (
        "The image is no CT or MR slice",
        "Most images of the study are no CT or MR slices",
        "it looks like",
        {
            ImageKind.PHOTOGRAPH: "a photograph or drawing",
            ImageKind.PAGE: "a page, chart or screen",
            ImageKind.RADIOGRAPH: "a radiograph",
            ImageKind.ULTRASOUND: "ultrasound",
            ImageKind.NOISE: "noise or a pattern",
            ImageKind.BLANK: "an empty image",
            ImageKind.COLOUR: "a picture in colour",
        },
    ),
    "es": (
        "La imagen no es un corte de TC ni de RM",
        "La mayoría de las imágenes del estudio no son cortes de TC ni de RM",
        "parece",
        {
            ImageKind.PHOTOGRAPH: "una fotografía o un dibujo",
            ImageKind.PAGE: "una página, un gráfico o una pantalla",
            ImageKind.RADIOGRAPH: "una radiografía",
            ImageKind.ULTRASOUND: "una ecografía",
            ImageKind.NOISE: "ruido o un patrón",
            ImageKind.BLANK: "una imagen vacía",
            ImageKind.COLOUR: "una imagen en color",
        },
    ),
}


# Of a study, by its headers alone.
NO_IMAGES = "The study holds no images."
NO_DICOM = "No file of the study can be read as DICOM."
ONLY_OTHERS = (
    "The study holds no CT or MR slices, only other images (other modalities, localizers, captures, dose screens)."
)
_TOO_FEW = re.compile(rf"(\d+) patients? in the repository; a statement needs {MIN_PATIENTS_FOR_P}")
_SPANISH = {
    NO_IMAGES: "El estudio no contiene imágenes.",
    NO_DICOM: "Ningún archivo del estudio puede leerse como DICOM.",
    ONLY_OTHERS: "El estudio no contiene cortes de TC ni de RM, solo otras imágenes (otras modalidades, localizadores, "
    "capturas, pantallas de dosis).",
}


def refusal(kind: ImageKind, *, several: bool, language: str = "en") -> str:
    """The sentence that says why an image, or ``several`` of a study, cannot be searched."""
    one, most, looks, kinds = _REFUSALS[language]
    seen = f": {looks} {kinds[kind]}" if kind in kinds else ""
    return f"{most if several else one}{seen}."


def too_few(patients: int, language: str = "en") -> str:
    """Why a repository with so many patients allows no statement."""
    if language == "es":
        said = "paciente" if patients == 1 else "pacientes"
        return f"{patients} {said} en el repositorio; una afirmación requiere {MIN_PATIENTS_FOR_P}"
    said = "patient" if patients == 1 else "patients"
    return f"{patients} {said} in the repository; a statement needs {MIN_PATIENTS_FOR_P}"


def cases_searched(n: int, language: str = "en") -> str:
    """How many cases (studies, of which a patient may have several) were searched."""
    if language == "es":
        return f"{n} caso examinado" if n == 1 else f"{n} casos examinados"
    return f"{n} case searched" if n == 1 else f"{n} cases searched"


def reason_in(reason: str, language: str) -> str:
    """A verdict's reason in another language, where it is a sentence of this page; else as it is."""
    few = _TOO_FEW.fullmatch(reason)
    if few:
        return too_few(int(few[1]), language)
    if language == "es" and reason in _SPANISH:
        return _SPANISH[reason]
    for several in (False, True):
        for kind in ImageKind:
            if reason == refusal(kind, several=several):
                return refusal(kind, several=several, language=language)
    return reason


REGION_WORDS: Final[dict[str, dict[str, str]]] = {
    "HEAD": {"en": "head", "es": "cabeza"},
    "NECK": {"en": "neck", "es": "cuello"},
    "CHEST": {"en": "chest", "es": "tórax"},
    "ABDOMEN": {"en": "abdomen and pelvis", "es": "abdomen y pelvis"},
    "SPINE": {"en": "spine", "es": "columna"},
    "BREAST": {"en": "breast", "es": "mama"},
    "LIMB": {"en": "limb", "es": "extremidad"},
}


@dataclass(frozen=True, slots=True)
class Shows:
    """What images show as their headers say: modality and region of the body, several as "ABDOMEN/CHEST", "" untold."""

    modality: str
    region: str = ""

    @classmethod
    def said_in(cls, query: Mapping[str, Any]) -> Shows:
        """What is said of a query (``Answer.query``)."""
        return cls(str(query.get("modality", "")), str(query.get("region", "")))

    def outside(self, taught: Iterable[Shows]) -> bool:
        """Whether a model that was taught ``taught`` (none: it does not say) was taught nothing like this."""
        taught = tuple(taught)
        return bool(taught) and not any(self._may_be(one) for one in taught)

    def _may_be(self, other: Shows) -> bool:
        mine, theirs = (frozenset(x.modality.split("/")) - UNTOLD for x in (self, other))
        here, there = (frozenset(x.region.split("/")) - UNTOLD for x in (self, other))
        return not (mine and theirs and not mine & theirs) and not (here and there and not here & there)

    def words(self, language: str = "en") -> str:
        """As a reader says it: "CT (chest)"."""
        said = [REGION_WORDS[r][language] if r in REGION_WORDS else r for r in self.region.split("/") if r]
        return " ".join(filter(None, (self.modality, f"({', '.join(said)})" if said else "")))

    def as_json(self) -> dict[str, str]:
        return {"modality": self.modality, "region": self.region}


NOT_TOLD: Final = Shows("")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A coded diagnosis or observation: system (SCT, I10C, I10, I9C, 99LABEL), code, display, and its source."""

    system: str
    code: str
    display: str
    source: str = ""

    def __post_init__(self) -> None:
        if not (self.system and self.code and self.display):
            raise ValueError("a finding needs system, code and display")

    def as_json(self) -> dict[str, str]:
        """The three keys of the command-line contract."""
        return {"system": self.system, "code": self.code, "display": self.display}


@dataclass(frozen=True, slots=True)
class SliceRef:
    """One embedded slice: where it belongs in the repository, and its position in its volume (0..1) if known."""

    instance: PseudoUid
    series: PseudoUid
    study: PseudoUid
    patient: Pseudonym
    frame: int = 0
    z: float | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """A slice of the query beside its best slice in the case. ``similarity`` in 0..1, uncalibrated."""

    query_instance: PseudoUid
    instance: PseudoUid
    similarity: float

    def as_json(self) -> dict[str, Any]:
        return {"query_instance": self.query_instance, "instance": self.instance, "similarity": self.similarity}


@dataclass(frozen=True, slots=True)
class Case:
    """A study of the repository, seen as an answer. Rank counts from 1; similarity in 0..1."""

    rank: int
    similarity: float
    subject: Pseudonym
    study_uid: PseudoUid
    series_uid: PseudoUid
    modality: str
    status: FindingStatus
    findings: tuple[Finding, ...]
    matches: tuple[Match, ...]

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0.0 <= self.similarity <= 1.0:
            raise ValueError("rank counts from 1 and similarity lies in 0..1")

    def as_json(self) -> dict[str, Any]:
        """CASE of the command-line contract."""
        return {
            "rank": self.rank,
            "similarity": self.similarity,
            "subject": self.subject,
            "study_uid": self.study_uid,
            "series_uid": self.series_uid,
            "modality": self.modality,
            "status": self.status.value,
            "findings": [f.as_json() for f in self.findings],
            "matches": [m.as_json() for m in self.matches],
        }

    @classmethod
    def from_json(cls, d: dict[str, Any]) -> Case:
        """The inverse of ``as_json``."""
        return cls(
            rank=d["rank"],
            similarity=d["similarity"],
            subject=Pseudonym(d["subject"]),
            study_uid=PseudoUid(d["study_uid"]),
            series_uid=PseudoUid(d["series_uid"]),
            modality=d["modality"],
            status=FindingStatus(d["status"]),
            findings=tuple(Finding(**f) for f in d["findings"]),
            matches=tuple(Match(**m) for m in d["matches"]),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What may be said about the list. ``p`` is the conformal p value, None where it cannot be given."""

    kind: VerdictKind
    p: float | None = None
    reason: str = ""

    @property
    def no_similar_case(self) -> bool:
        return self.kind is VerdictKind.NONE


class Untaught(NamedTuple):
    """A query beyond what its model was taught: nothing says that its order of such images means anything."""

    taught: tuple[Shows, ...]
    shows: Shows

    def words(self, language: str = "en") -> dict[str, str]:
        """Both as readers say them: ``taught`` and ``shows``."""
        return {"taught": ", ".join(t.words(language) for t in self.taught), "shows": self.shows.words(language)}

    def as_json(self) -> dict[str, Any]:
        """What ``Answer.query`` holds."""
        return {"taught": [t.as_json() for t in self.taught], "shows": self.shows.as_json()}


@dataclass(frozen=True, slots=True)
class Answer:
    """Verdict and ranked cases for one query; de-identified throughout.

    Attributes
    ----------
    query : dict
        What is said of the query: ``modality``, ``slices`` (number embedded), ``series`` (chosen, with why), ``region``
        of the body where descriptions name one, ``untaught`` where the model was taught nothing like it, ``text``
        (words) where cases were chosen by their findings.
    searched : int
        Number of cases that were open to the search after exclusions.
    """

    query: dict[str, Any]
    model_id: ModelId
    verdict: Verdict
    cases: tuple[Case, ...]
    searched: int
    calibrated: bool = False
    search: dict[str, Any] = field(default_factory=dict)

    @property
    def other_modality(self) -> str:
        """The query's modality where cases are called similar and none of them has it; "" otherwise."""
        asked = self.shows.modality
        same = not asked or any(set(c.modality.split("/")) & set(asked.split("/")) for c in self.cases)
        return "" if same or not self.cases or self.verdict.kind is not VerdictKind.SIMILAR else asked

    @property
    def filtered_by(self) -> str:
        """The words that the findings of the cases had to have, "" for all cases. The verdict knows no such filter: it
        is about the whole repository."""
        return str(self.query.get("text", ""))

    @property
    def shows(self) -> Shows:
        """Modality and region of the query, as far as its headers say."""
        return Shows.said_in(self.query)

    @property
    def untaught(self) -> Untaught | None:
        """Where cases are listed by a model that was taught nothing like the query: what it knows, and what this is."""
        said = self.query.get("untaught")
        if not isinstance(said, dict) or not self.cases:
            return None
        return Untaught(tuple(Shows(**s) for s in said["taught"]), Shows(**said["shows"]))

    def as_json(self) -> dict[str, Any]:
        """The object of ``query --json``."""
        return {
            "query": self.query,
            "model_id": self.model_id,
            "verdict": self.verdict.kind.value,
            "reason": self.verdict.reason,
            "p": self.verdict.p,
            "no_similar_case": self.verdict.no_similar_case,
            "calibrated": self.calibrated,
            "searched": self.searched,
            "search": self.search,
            "cases": [c.as_json() for c in self.cases],
        }

    @classmethod
    def from_json(cls, d: dict[str, Any]) -> Answer:
        """The inverse of ``as_json``."""
        return cls(
            query=d["query"],
            model_id=ModelId(d["model_id"]),
            verdict=Verdict(VerdictKind(d["verdict"]), d["p"], d.get("reason", "")),
            cases=tuple(Case.from_json(c) for c in d["cases"]),
            searched=d["searched"],
            calibrated=d["calibrated"],
            search=d.get("search", {}),
        )
