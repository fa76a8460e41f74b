"""Made-up patients, English and Spanish, from two lists of names that share no word: TUNE and REPORT.

Rules and word lists may be tuned on TUNE only; the figures of ``docs/deid-report.md`` come from REPORT. Nobody here
exists. Each list holds some surnames that are also words of radiology (Head, Cuello), as some patients have them.
"""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass, field

from . import phrases

_MONTHS_EN = "January February March April May June July August September October November December".split()
_MONTHS_ES = "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre".split()


@dataclass(frozen=True)
class Names:
    """Words of one list, by language (``en``, ``es``); ``also_words`` are surnames that mean something else too."""

    given: dict[str, list[str]]
    family: dict[str, list[str]]
    streets: dict[str, list[str]]
    cities: dict[str, list[str]]
    hospitals: dict[str, list[str]]
    phrases: dict[str, list[str]]
    relatives: dict[str, list[str]]  # how a text names somebody who belongs to the patient
    also_words: frozenset[str]

    def words(self) -> set[str]:
        """Every word of the identities, in lower case; the clinical phrases are not part of an identity."""
        groups = (self.given, self.family, self.streets, self.cities, self.hospitals)
        texts = [name for group in groups for names in group.values() for name in names]
        return {word.casefold() for text in texts for word in text.split()} - COMMON_NOUNS


COMMON_NOUNS = frozenset(
    "avenida avenue calle camino centre centro clinic clínica close county crescent cross de del drive hospital "
    "infirmary lane medical médico memorial mill old pasaje paseo road saint terrace virgen".split()
)

TUNE = Names(
    given={
        "en": "Anna Brian Claire Derek Edith Frank Gloria Howard Ingrid Jerome Kathleen Leonard".split(),
        "es": "Alejandra Bruno Carolina Diego Elvira Fermín Gabriela Hernán Inés Joaquín Lucía Matías".split(),
    },
    family={
        "en": "Kowalski Abernathy Blackwood Crawford Donnelly Ellsworth Fitzgerald Gallagher Hutchinson Head".split(),
        "es": "Arriagada Bustamante Cifuentes Echeverría Figueroa Gutiérrez Henríquez Iturra Jaramillo Cuello".split(),
    },
    streets={
        "en": ["Maplewood Avenue", "Thornbury Lane", "Kingsley Drive"],
        "es": ["Calle Alcántara", "Avenida Providencia", "Pasaje Quillota"],
    },
    cities={"en": ["Harrowgate", "Bellingham", "Dunmore"], "es": ["Valparaíso", "Talavera", "Antofagasta"]},
    hospitals={
        "en": ["Saint Alban Infirmary", "Riverton Clinic"],
        "es": ["Hospital Sótero", "Clínica Reñaca"],
    },
    phrases=phrases.TUNE,
    relatives={
        "en": ["{phrase}. Accompanied by {relative's surname}, {telephone}", "Mother: {relative's surname}. {phrase}"],
        "es": ["{phrase}. Acompañado por {relative's surname}", "Sra. {relative's surname}; {phrase}"],
    },
    also_words=frozenset({"Head", "Cuello"}),
)  # fmt: skip
REPORT = Names(
    given={
        "en": "Adelaide Barnaby Cordelia Desmond Eleanor Frederick Gwendolyn Hubert Isadora Jasper Kimberley Lionel "
        "Millicent Nathaniel Octavia Percival Rosalind Sebastian Theodora Wilfred".split(),
        "es": "Amparo Baltasar Consuelo Domingo Esperanza Florencio Guadalupe Horacio Iñaki Jimena Leocadia "
        "Maximiliano Nieves Óscar Purificación Ramiro Soledad Teófilo Úrsula Virginia".split(),
    },
    family={
        "en": "Ashdown Bickerstaff Chatterton Dalrymple Entwistle Featherstone Greenhalgh Hollingsworth Inglethorpe "
        "Jephcott Kilpatrick Lockhart Montague Nettleton Ollerenshaw Pemberton Quartermain Ravenscroft Small "
        "Hand".split(),
        "es": "Abascal Benavides Carvajal Dueñas Elizondo Fuenzalida Goyeneche Huidobro Ibáñez Jodorowsky Larraín "
        "Monasterio Núñez Olavarría Peñalver Quintanilla Riquelme Saavedra Cabeza Costillas".split(),
    },
    streets={
        "en": ["Winterbourne Crescent", "Old Mill Terrace", "Chesterfield Road", "Larkspur Close"],
        "es": ["Calle Hortaleza", "Avenida Irarrázaval", "Paseo Recoletos", "Camino Lonquén"],
    },
    cities={
        "en": ["Todmorden", "Ludlow", "Ithaca", "Wollongong"],
        "es": ["Zaragoza", "Concepción", "Rancagua", "Oviedo"],
    },
    hospitals={
        "en": ["Queensferry Memorial Hospital", "Holy Cross Medical Centre", "Westlake County Hospital"],
        "es": ["Hospital Virgen del Rocío", "Clínica Alemana de Temuco", "Centro Médico Teknon"],
    },
    phrases=phrases.REPORT,
    relatives={
        "en": [
            "{phrase}. Next of kin: {relative's surname}, {telephone}", "{phrase}. Mrs. {relative's surname} was told",
            "Daughter {relative's surname} present. {phrase}", "{phrase}; referred by Dr {relative's surname}",
        ],
        "es": [
            "{phrase}. Acude con su hija {relative's surname}", "{phrase}. Familiar: {relative's surname} {telephone}",
            "Don {relative's surname}, marido. {phrase}", "{phrase}; informado por {relative's surname}",
        ],
    },
    also_words=frozenset({"Small", "Hand", "Cabeza", "Costillas"}),
)  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """One patient and those around the study. ``secrets`` are the texts that may occur nowhere, by kind."""

    language: str
    given: str
    family: str
    birth: datetime.date
    study: datetime.date
    sex: str
    age: str
    patient_id: str
    accession: str
    physician: tuple[str, str]
    hospital: str
    phrases: tuple[str, ...]
    relatives: tuple[str, ...]
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.family}^{self.given}"


def people(names: Names, count: int, seed: int) -> list[Identity]:
    """``count`` patients, half of them Spanish, the same for the same seed."""
    rng = random.Random(seed)
    return [_person(names, "es" if number % 2 else "en", number, rng) for number in range(count)]


def _person(names: Names, language: str, number: int, rng: random.Random) -> Identity:
    family_names = names.family[language]
    family, given = family_names[number // 2 % len(family_names)], rng.choice(names.given[language])
    second, relative = rng.sample([one for one in family_names if one != family], 2)
    doctor = (
        rng.choice([one for one in family_names if one not in (family, second)]),
        rng.choice(names.given[language]),
    )
    birth = datetime.date(1921, 1, 1) + datetime.timedelta(days=rng.randrange(36_000))
    study = datetime.date(2008, 1, 1) + datetime.timedelta(days=rng.randrange(6_000))
    patient_id, accession = _patient_id(rng), f"{rng.choice(['A', 'ACC-', 'RX', ''])}{rng.randrange(10**7, 10**8)}"
    hospital, city = rng.choice(names.hospitals[language]), rng.choice(names.cities[language])
    street = f"{rng.choice(names.streets[language])} {rng.randrange(100, 9999)}"
    plain = _plain(f"{given}.{family}")
    secrets = {
        "given name": given, "surname": family, "physician's surname": doctor[0], "relative's surname": relative,
        "patient id": patient_id, "accession number": accession, "hospital": hospital, "city": city, "street": street,
        "telephone": _telephone(language, rng), "national id": _national_id(language, rng),
        "record number": f"MRN{rng.randrange(10**6, 10**7)}", "e-mail": f"{plain}@example.org",
        "web address": f"https://portal.example.net/patients/{plain}/{rng.randrange(10**5, 10**6)}",
        "written date": written(rng.choice([birth, study]), language, rng.randrange(8)),
    }  # fmt: skip
    if language == "es":
        secrets["second surname"] = second
    age = f"{min(max(study.year - birth.year, 0), 130):03d}Y"
    phrases = tuple(rng.sample(names.phrases[language], min(3, len(names.phrases[language]))))
    return Identity(
        language, given, f"{family} {second}" if language == "es" else family, birth, study, rng.choice("MF"), age,
        patient_id, accession, doctor, hospital, phrases, tuple(names.relatives[language]), secrets,
    )  # fmt: skip


def _plain(text: str) -> str:
    """Without accents, in lower case: as it stands in an address of a web page."""
    return text.casefold().translate(str.maketrans("áéíóúñü ", "aeiounu-"))


def _patient_id(rng: random.Random) -> str:
    return rng.choice(["{:08d}", "PAT-{:07d}", "H{:06d}X", "{:05d}/19"]).format(rng.randrange(10**5))


def _telephone(language: str, rng: random.Random) -> str:
    a, b, c = rng.randrange(200, 999), rng.randrange(100, 999), rng.randrange(1000, 9999)
    forms = (
        [f"+56 9 {a}4 {c}", f"+34 {a} {b} {c % 1000:03d}"]
        if language == "es"
        else [f"({a}) {b}-{c}", f"+1-{a}-{b}-{c}"]
    )
    return rng.choice(forms)


def _national_id(language: str, rng: random.Random) -> str:
    """A RUT (Chile) or DNI (Spain) with its check character, or a number in the form of the United States."""
    if language == "en":
        return f"{rng.randrange(900, 999)}-{rng.randrange(10, 99)}-{rng.randrange(1000, 9999)}"
    number = rng.randrange(5_000_000, 25_000_000)
    if rng.random() < 0.5:
        return f"{number:08d}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"
    rest = 11 - sum(int(digit) * (2 + place % 6) for place, digit in enumerate(reversed(str(number)))) % 11
    check = {11: "0", 10: "K"}.get(rest, str(rest))
    return f"{number:,}".replace(",", ".") + f"-{check}"


def written(date: datetime.date, language: str, form: int) -> str:
    """A date as people write it in free text; ``form`` 0 to 7."""
    english, spanish = _MONTHS_EN[date.month - 1], _MONTHS_ES[date.month - 1]
    forms = [
        f"{date:%d/%m/%Y}", f"{date:%Y-%m-%d}", f"{date:%d.%m.%Y}", f"{date:%Y%m%d}", f"{date:%d%m%Y}",
        f"{english} {date.day}, {date.year}" if language == "en" else f"{date.day} de {spanish} de {date.year}",
        f"{date.day}-{(english if language == 'en' else spanish)[:3]}-{date.year}", f"{date:%m/%d/%Y}",
    ]  # fmt: skip
    return forms[form]
