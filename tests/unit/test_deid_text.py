"""The text cleaner keeps listed words and numbers with units, and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dicomnode.deid.text import clean, counted, units
from dicomnode.deid.text_audit import is_clean
from dicomnode.deid.words import is_known, lower_case_words, vocabulary


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("CT CHEST W/O CONTRAST 5.0 mm", "CT CHEST W O CONTRAST 5.0 mm"),
        ("T2W_TSE_SAG 1.5T", "T2W TSE SAG 1.5T"),
        ("TAC de tórax con contraste", "TAC de tórax con contraste"),
        ("Juan Pérez tórax AP", "tórax AP"),
        ("Chest for Smith, room 312", "Chest for"),
        ("CHEST 12/03/1965", "CHEST"),
        ("CHEST MRN12345 1234567", "CHEST"),
        ("CHEST 1234 mm", "CHEST"),
        ("injected 80 ml at 4 ml/s, creatinine 1.2mg/dl", "injected 80 ml at 4 ml s creatinine 1.2mg dl"),
        ("chest s/kg hip", "chest hip"),
        (
            "call anna.k@heart-center.org, www.chest.org/left or https://hip.org; grade 3. Left 4.5",
            "call or grade 3 Left",
        ),
        ("Concepción Dueñas: concepciones", "concepciones"),
        ("LESION, INFECCION; PROTESIS DE CADERA. PEREZ, Abascal", "LESION INFECCION PROTESIS DE CADERA"),
        ("60 Gy in 30 fractions, 12 weeks; fat 70%, 8 % less", "60 Gy in 30 fractions 12 weeks fat 70 % 8 % less"),
        ("123 weeks, 62 years, 14 months, room 41, % of 4711 %", "weeks years months of"),
        ("山田^太郎 chest", "chest"),
        ("mm kV", ""),
        ("CT chest. Accompanied by Small, tel", "CT chest"),
        ("Chest AP, Mrs. Hand informed", "Chest AP informed"),
        ("MRS brain. DR CHEST", "MRS brain DR CHEST"),
        ("Mother: Small Hand. Left hand", "Left hand"),
        ("Sra. Cabeza; cabeza y cuello", "cabeza y cuello"),
        ("firmado por Dr. Costillas tórax", "tórax"),
        ("Centro Médico Teknon: Ecografía renal", "Centro Ecografía renal"),
        ("mother with breast cancer", "mother with breast cancer"),
        ("mother Hand with breast cancer", "with breast cancer"),
        ("Referred by Head, head and neck", "head and neck"),
        ("CT ACCOMPANIED BY HAND / LUNG", "CT LUNG"),
        ("grade 3 tear, phase 2; segment 4 (zone 1) left", "grade 3 tear phase 2 segment 4 zone 1 left"),
        ("chest 3/4/65 hip 1.2.3 lung 5-6 knee 7 8 9", "chest hip lung knee"),
        ("chest Smith 3, 4 phase 1x2 hip #5 kidney 6 Pérez 7 mm", "chest 4 phase hip kidney 7 mm"),
        ("Chest X-ray PA", "Chest X ray PA"),
        ("X-RAYS of knee X, X Pérez 3, Ray, Ray Pérez", "X RAYS of knee"),
        ("unión esofagogástrica, fístula aortobronquial", "unión esofagogástrica fístula aortobronquial"),
        ("Rodilla torcida, scans of kidneys; Campos y Bridges", "Rodilla torcida scans of kidneys y"),
        ("STILL painful, still painful; Hill, White hill", "painful still painful hill"),
        ("Oído axial 0,6 mm, segmentos 5,6 altos; L knee", "Oído axial 0,6 mm segmentos altos L knee"),
        ("seen by dr hill, mrs white; prof. reed says still pain", "says still pain"),
        (
            "mr of white matter, TE 5 ms long; mother still worried",
            "mr of white matter TE 5 ms long mother still worried",
        ),
        ("esplenorrenal shunt; pericardiophrenic, retroperitoneoscopy", "esplenorrenal shunt pericardiophrenic"),
        ("Prewitt Toracosmith Gastroman 7 " + "intra" * 2000, ""),
        ("", ""),
    ],
)
def test_words_that_nobody_listed_are_dropped(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


_PAIRED = {one for pair in vocabulary() for one in pair.split("-") if "-" in pair}


@settings(deadline=None)
@given(st.text(max_size=60))
@example("2S")
def test_whatever_comes_in_only_allowed_words_come_out(text: str) -> None:
    words = clean(text).casefold().split()
    for word in words:
        number = re.fullmatch(r"\d+(?:[.,]\d+)?(.*)", word)
        assert (
            is_known(word)
            or word in lower_case_words()
            or word in units()
            or word in _PAIRED
            or (number is not None and number[1] in {"", *units()})
        )
    assert clean(clean(text)) == clean(text)


_PIECES = [
    "chest", "gastrohepatic", "splenorrenal", "gastroabc", "X", "ray", "3", "12", "mm", "s", "grade", "5.0", "Hand",
    ",", "-", "/",
]  # fmt: skip


@settings(deadline=None)  # the first one reads the lists
@given(st.text(max_size=60) | st.lists(st.sampled_from(_PIECES)).map(" ".join))
@example("RGB to JPEG Baseline 1 conversion")
def test_the_auditor_takes_what_the_cleaner_leaves(text: str) -> None:
    assert all(is_clean(one) for one in (clean(text), clean(clean(text))) if one)


def test_a_count_goes_with_the_name_that_it_stands_before() -> None:
    assert clean("lesion, 12 weeks; 5 weeks", frozenset({"weeks"})) == "lesion"


def test_counted_words_are_words_of_the_vocabulary() -> None:
    assert counted() <= vocabulary()


def test_a_pair_of_words_goes_where_one_of_them_is_a_name() -> None:
    assert clean("Chest X-ray of knee", frozenset({"ray"})) == "Chest of knee"


def test_the_vocabulary_has_no_eponyms_that_are_surnames() -> None:
    surnames = "willis boyd dodd hunter bell young hill graves crohn long white brown blanca blanco"
    assert not set(surnames.split()) & vocabulary()
