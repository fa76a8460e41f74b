"""Scheme ``99DICOMNODE``: fixed UIDs, concepts DN-000 to DN-015, and every sentence of the report in two languages.

Nothing here is computed or configured: a receiver may rely on these values for ever. Codes follow the conformance
statement; PS3.16 has no standard code for a similar case, its rank or its similarity. Scheme items: PS3.3 C.12.1.1.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset

from dicomnode.domain import IMPLEMENTATION_CLASS_UID as IMPLEMENTATION_CLASS_UID
from dicomnode.domain import LABEL_SCHEME, SCHEME

if TYPE_CHECKING:
    from highdicom.sr.coding import CodedConcept

# Drawn once as random UUIDs (PS3.5 B.2) and never changed.
SCHEME_UID = "2.25.215524031941169969220989128792875089148"
LABEL_SCHEME_UID = "2.25.203562209711621931245376127817309754060"
DEVICE_UID = "2.25.232991723290768373766261367197717931533"

PRODUCT = "dicomnode"
MANUFACTURER = "dicomnode developers"

COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
ENHANCED_SR = "1.2.840.10008.5.1.4.1.1.88.22"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"

# Designators of PS3.16 table 8-1 that a finding may carry as a code; any other is written out as text.
FINDING_SCHEMES = frozenset({"SCT", "I10", "I10C", "I9", "I9C", "LN", "RADLEX", LABEL_SCHEME})


class Language(StrEnum):
    """Languages of the report (RFC 5646)."""

    EN = "en"
    ES = "es"


class Concept(Enum):
    """Concepts of the scheme: code value, English meaning, Spanish meaning (each at most 64 characters, LO)."""

    REPORT = ("DN-000", "Similar Cases Report", "Informe de casos similares")
    CASE = ("DN-001", "Similar Case from Another Patient", "Caso similar de otro paciente")
    SIMILARITY = ("DN-002", "Similarity", "Similitud")
    RANK = ("DN-003", "Similarity Rank", "Orden de similitud")
    FINDING = ("DN-004", "Finding recorded for the similar case", "Hallazgo registrado en el caso similar")
    LINK = ("DN-005", "Link to similar-case viewer", "Enlace al visor de casos similares")
    NOTICE = ("DN-006", "Notice", "Aviso")
    STUDY_UID = ("DN-007", "Reference Study Instance UID", "UID del estudio de referencia")
    SERIES_UID = ("DN-008", "Reference Series Instance UID", "UID de la serie de referencia")
    INSTANCE_UID = ("DN-009", "Reference SOP Instance UID", "UID de la instancia de referencia")
    MODALITY = ("DN-010", "Modality of the similar case", "Modalidad del caso similar")
    QUERY_IMAGE = ("DN-011", "Query Image", "Imagen consultada")
    SEARCHED = ("DN-012", "Number of cases searched", "Número de casos examinados")
    METHOD = ("DN-013", "Search method", "Método de búsqueda")
    SCORE = ("DN-014", "Similarity score (uncalibrated)", "Puntuación de similitud (sin calibrar)")
    VERDICT = ("DN-015", "Verdict", "Veredicto")

    @property
    def code(self) -> str:
        """Code Value, such as ``DN-003``."""
        return self.value[0]

    def coded(self, language: Language) -> CodedConcept:
        """The concept name as a code item; the meaning is in the report's language, the code never changes."""
        from highdicom.sr.coding import CodedConcept  # a second to import, and a sheet needs no codes

        return CodedConcept(self.code, SCHEME, self.value[2] if language is Language.ES else self.value[1])


@dataclass(frozen=True, slots=True)
class Texts:
    """Every sentence the objects carry, in one language. Fields in braces are filled with ``str.format``."""

    language_name: str
    series_description: str
    sheet_description: str
    document_description: str
    notice: str
    similar: str
    none: str
    too_small: str
    not_searchable: str
    p_value: str
    listed_below: str
    no_case_listed: str
    other_modality: str
    untaught: str
    below_threshold: str
    below_threshold_short: str
    rank: str
    finding_unknown: str
    finding_none: str
    finding_uncoded: str
    modality_unknown: str
    query_slice: str
    query_slice_unnumbered: str
    own_study: str
    sheet_title: str
    sheet_title_below: str
    sheet_notice: str
    not_this_patient: str
    this_study: str
    decimal: str  # mark between units and tenths
    similarity: str
    score: str
    more_cases: str
    more_findings: str
    score_note: str
    similarity_note: str
    page: str
    open_viewer: str
    document_title: str
    no_image: str
    legend: tuple[str, str, str]  # present, none, unknown
    pair_note: str


ENGLISH = Texts(
    language_name="English",
    series_description="Similar cases (AI search, not for diagnosis)",
    sheet_description="Similar cases, contact sheet (AI, not for diagnosis)",
    document_description="Similar cases, PDF with links (AI, not for diagnosis)",
    notice=(
        "The cases listed here belong to OTHER patients (de-identified). They were retrieved by image similarity, "
        "not by diagnosis. Findings listed with a case are findings of that case, never of this patient. "
        "Not a diagnosis for this patient. The score ranks cases; it is not a probability."
    ),
    similar="Similar cases were found; number of cases searched: {searched}.",
    none="No similar case was found in this repository; number of cases searched: {searched}{p}.",
    too_small="The repository is too small to tell whether any case is similar{reason}; {cases}.",
    not_searchable="This study could not be searched{reason}.",
    p_value=" (p = {p})",
    listed_below="The nearest cases are listed all the same, each marked as below threshold.",
    no_case_listed="No case is listed.",
    other_modality="Caution: this study is {modality}, and none of the cases listed is.",
    untaught="Caution: the model learnt from {taught} and was not taught {shows}.",
    below_threshold="Below threshold: nearest case, not shown to be similar.",
    below_threshold_short="below threshold",
    rank="{rank} of {total}",
    finding_unknown="unknown / not recorded",
    finding_none="none recorded by source",
    finding_uncoded="present, not coded by source",
    modality_unknown="unknown",
    query_slice="Series {series}, image {image}",
    query_slice_unnumbered="Image without number",
    own_study="{slice} (of the study this report belongs to)",
    sheet_title="Similar cases from OTHER patients",
    sheet_title_below="Nearest cases from OTHER patients: below threshold",
    sheet_notice="Retrieved by image similarity. Not a diagnosis for this patient.",
    not_this_patient="NOT THIS PATIENT",
    this_study="THIS STUDY",
    decimal=".",
    similarity="similarity {value}",
    score="score {value}",
    more_cases="{n} more in the report",
    more_findings="and {n} more",
    score_note="The score (0 to 1) puts cases in order; it is not a probability.",
    similarity_note="Similarity of images, in percent; not the probability of a diagnosis.",
    page="Page {n} of {total}",
    open_viewer="Open in the viewer",
    document_title="Similar cases (not for diagnosis)",
    no_image="no image",
    legend=("finding recorded", "no finding (stated by source)", "unknown"),
    pair_note="most like slice A",
)

SPANISH = Texts(
    language_name="Spanish",
    series_description="Casos similares (búsqueda por IA, no diagnóstica)",
    sheet_description="Casos similares, hoja de contactos (IA, no diagnóstica)",
    document_description="Casos similares, PDF con enlaces (IA, no diagnóstico)",
    notice=(
        "Los casos de esta lista pertenecen a OTROS pacientes (anonimizados). Se recuperaron por similitud de imagen, "
        "no por diagnóstico. Los hallazgos de cada caso son de ese caso, nunca de este paciente. "
        "No es un diagnóstico de este paciente. La puntuación ordena los casos; no es una probabilidad."
    ),
    similar="Se encontraron casos similares; casos examinados: {searched}.",
    none="No se encontró ningún caso similar en este repositorio; casos examinados: {searched}{p}.",
    too_small="El repositorio es demasiado pequeño para saber si algún caso es similar{reason}; {cases}.",
    not_searchable="No se pudo buscar con este estudio{reason}.",
    p_value=" (p = {p})",
    listed_below="Aun así se muestran los casos más próximos, marcados cada uno como por debajo del umbral.",
    no_case_listed="No se muestra ningún caso.",
    other_modality="Atención: este estudio es {modality} y ninguno de los casos mostrados lo es.",
    untaught="Atención: el modelo aprendió de {taught} y no se le enseñó {shows}.",
    below_threshold="Por debajo del umbral (below threshold): caso más próximo, sin similitud demostrada.",
    below_threshold_short="por debajo del umbral",
    rank="{rank} de {total}",
    finding_unknown="desconocido / no registrado",
    finding_none="ninguno, según la fuente",
    finding_uncoded="presente, sin codificar en la fuente",
    modality_unknown="desconocida",
    query_slice="Serie {series}, imagen {image}",
    query_slice_unnumbered="Imagen sin número",
    own_study="{slice} (del estudio al que pertenece este informe)",
    sheet_title="Casos similares de OTROS pacientes",
    sheet_title_below="Casos más próximos de OTROS pacientes: por debajo del umbral",
    sheet_notice="Recuperados por similitud de imagen. No es un diagnóstico de este paciente.",
    not_this_patient="NO ES ESTE PACIENTE",
    this_study="ESTE ESTUDIO",
    similarity="similitud {value}",
    score="puntuación {value}",
    decimal=",",
    more_cases="{n} más en el informe",
    more_findings="y {n} más",
    score_note="La puntuación (0 a 1) ordena los casos; no es una probabilidad.",
    similarity_note="Similitud de imágenes, en porcentaje; no la probabilidad de un diagnóstico.",
    page="Página {n} de {total}",
    open_viewer="Abrir en el visor",
    document_title="Casos similares (no para diagnóstico)",
    no_image="sin imagen",
    legend=("hallazgo registrado", "sin hallazgos (según la fuente)", "desconocido"),
    pair_note="parecida a la imagen A",
)


def texts(language: Language) -> Texts:
    """The sentences in ``language``."""
    return SPANISH if language is Language.ES else ENGLISH


def scheme_item(designator: str, organisation: str) -> Dataset:
    """One item of Coding Scheme Identification Sequence for one of our two private schemes (PS3.3 table C.12-1)."""
    own = designator == SCHEME
    item = Dataset()
    item.CodingSchemeDesignator = designator
    item.CodingSchemeUID = SCHEME_UID if own else LABEL_SCHEME_UID
    item.CodingSchemeName = "dicomnode similar-case concepts" if own else "Labels of a site's own index files"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER if own or not organisation else organisation
    return item
