"""Plants an identity into an object and writes down where: the answer key.

Places: the attributes that always carry an identity; attributes of every VR drawn from Table E.1-1, at top level, in
sequences up to four deep, in a sequence encoded as UN, in a private block; free text between clinical words; file
meta, preamble, trailing padding, and bytes behind the last pixel.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath

import pydicom.config
from pydicom import dcmwrite
from pydicom.charset import default_encoding
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from . import table_rows
from .identities import Identity
from .objects import Carrier

Path = tuple[int, ...]  # tag, item number, tag, item number, ... tag
CHAIN = (0x00081115, 0x0008114A, 0x00082218, 0x00082220)  # sequences that the table does not list, one in the other
UN_SEQUENCE = 0x00400440  # Protocol Context Sequence: the table does not list it
ROWS_AT_TOP, ROWS_IN_ITEMS, ROWS_IN_UN, ROWS_IN_PRIVATE = 40, 8, 8, 6
_WORD = re.compile(r"[^\W_]+(?:\.\d+)?")
# The identity of an object; what hangs on these stays as the carrier has it.
_NOT_DRAWN = {0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00100010, 0x00100020, 0x00120063, 0x00120064}
# Private elements that PS3.15 E.3.10 calls safe: group, creator, place in the block, VR, value.
_SAFE = (
    (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", "800"), (0x0043, "GEMS_PARM_01", 0x6F, "DS", "1.5\\2.5\\3.5"),
    (0x2001, "Philips Imaging DD 001", 0x83, "DS", "63.8958"),
    (0x7053, "Philips PET Private Group", 0x00, "DS", "0.00042"),
    (0x2001, "Philips Imaging DD 001", 0x0B, "CS", "CORONAL"),
)  # fmt: skip
_DEVICE_VRS = frozenset({"LO", "LT", "SH", "ST", "UC", "UT", "CS", "AE", "OB", "DS", "IS"})
_LIMITS = {"SH": 16, "CS": 16, "AE": 16, "LO": 64}  # characters, PS3.5 table 6.2-1


@dataclass(frozen=True)
class Plant:
    """``secrets`` (kind, text) stand at ``path`` between the clinical words ``keep``; no path: outside the data set."""

    path: Path
    place: str
    secrets: tuple[tuple[str, str], ...]
    keep: tuple[str, ...] = ()


@dataclass
class Planted:
    """One file with its answer key. ``patient`` numbers the identity; ``also_words`` are not searched everywhere."""

    file: FilePath
    modality: str
    source: str
    patient: int
    plants: list[Plant] = field(default_factory=list)
    also_words: frozenset[str] = frozenset()
    safe: list[tuple[Path, str]] = field(default_factory=list)  # private elements of Table E.3.10-1, with their values

    @property
    def title(self) -> str:
        return f"{self.modality} {self.source} #{self.file.stem}"


class Planter:
    """Plants one identity into one object."""

    def __init__(self, carrier: Carrier, who: Identity, number: int, uids: dict[str, str], seed: int) -> None:
        self.ds: FileDataset = carrier.ds
        self._who = who
        self._rng = random.Random(seed)
        self._uids = uids
        self._number = number
        self._carrier = carrier
        self._keys: list[Plant] = []
        self._safe: list[tuple[Path, str]] = []

    def write(self, file: FilePath, patient: int, also_words: frozenset[str]) -> Planted:
        with pydicom.config.disable_value_validation(), _leaving_un():
            self._frame()
            self._usual()
            self._table()
            self._private()
            self._write(file)
        where = self._carrier
        return Planted(file, where.modality, where.source, patient, self._keys, also_words, self._safe)

    def _frame(self) -> None:
        """UIDs of the patient's study, a new instance, and what lets a radiograph pass the gate."""
        ds = self.ds
        ds.SpecificCharacterSet = self._rng.choice(["ISO_IR 192", "ISO_IR 100"])
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = self._uids["study"], self._uids["frame"]
        ds.SeriesInstanceUID = f"{self._uids['study']}.7.{self._number}"
        ds.SOPInstanceUID = f"{self._uids['study']}.8.{self._number}"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        if self._carrier.modality not in ("US", "OT"):
            ds.BurnedInAnnotation = "NO"

    def _usual(self) -> None:
        who, ds = self._who, self.ds
        ds.PatientSex, ds.PatientAge, ds.PatientWeight, ds.PatientSize = who.sex, who.age, "71.5", "1.68"
        ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = f"{who.study:%Y%m%d}"
        ds.PatientBirthDate, ds.StudyTime = f"{who.birth:%Y%m%d}", "091523.25"
        ds.AcquisitionDateTime = f"{who.study:%Y%m%d}091601.5"
        reference = Dataset()
        reference.ReferencedSOPClassUID = ds.SOPClassUID
        reference.ReferencedSOPInstanceUID = f"{self._uids['study']}.8.1"
        ds.ReferencedImageSequence = Sequence([reference])
        for keyword, kind in (
            ("PatientName", "name"), ("PatientID", "patient id"), ("OtherPatientIDs", "record number"),
            ("PatientBirthName", "name"), ("PatientAddress", "address"), ("PatientTelephoneNumbers", "telephone"),
            ("IssuerOfPatientID", "hospital"), ("MedicalRecordLocator", "national id"), ("StationName", "text"),
            ("PerformingPhysicianName", "physician"), ("OperatorsName", "physician"), ("InstitutionName", "hospital"),
            ("ReferringPhysicianName", "physician"), ("AccessionNumber", "accession number"),
            ("InstitutionAddress", "address"),
            ("StudyID", "national id"), ("PatientComments", "text"), ("AdditionalPatientHistory", "text"),
            ("ImageComments", "text"), ("StudyDescription", "text"), ("SeriesDescription", "text"),
            ("ProtocolName", "text"), ("RequestedProcedureDescription", "text"), ("ReasonForStudy", "text"),
        ):  # fmt: skip
            tag = int(pydicom.datadict.tag_for_keyword(keyword) or 0)
            self._plant(ds, (tag,), "top", kind)

    def _table(self) -> None:
        """Rows of the table drawn by chance, each VR at least once at the top where it is there to be drawn."""
        rows = {tag: row for tag, row in table_rows.rows().items() if row["vr"] and tag not in _NOT_DRAWN}
        by_vr: dict[str, list[int]] = {}
        for tag, row in rows.items():
            by_vr.setdefault(row["vr"], []).append(tag)
        first = [self._rng.choice(tags) for tags in by_vr.values()]
        self._draw(self.ds, (), "top", first + self._rng.sample(list(rows), ROWS_AT_TOP))
        here, path = self.ds, ()
        for depth, tag in enumerate(CHAIN, 1):
            item = Dataset()
            items = [*here[tag].value, item] if tag in here else [item]
            here[tag] = DataElement(tag, "SQ", Sequence(items))
            here, path = items[-1], (*path, tag, len(items) - 1)
            self._draw(here, path, f"item {depth} deep", self._rng.sample(list(rows), ROWS_IN_ITEMS))
        inside = Dataset()
        path = (UN_SEQUENCE, 0)
        self._draw(inside, path, "sequence as UN", self._rng.sample(list(rows), ROWS_IN_UN))
        inside.SpecificCharacterSet = self.ds.SpecificCharacterSet
        self.ds[UN_SEQUENCE] = DataElement(UN_SEQUENCE, "UN", _as_un(inside))

    def _draw(self, ds: Dataset, path: Path, place: str, tags: Iterable[int]) -> None:
        for tag in tags:
            if tag not in ds:
                self._plant(ds, (*path, tag), place, "any")

    def _plant(self, ds: Dataset, path: Path, place: str, kind: str) -> None:
        vr = table_rows.rows()[path[-1]]["vr"]
        value, secrets, keep = self._value(vr, kind, path[-1])
        ds[path[-1]] = DataElement(path[-1], vr, value)
        if secrets:
            self._keys.append(Plant(path, place, tuple((name, text) for name, text in secrets), keep))

    def _value(self, vr: str, kind: str, tag: int) -> tuple[object, list[tuple[str, str]], tuple[str, ...]]:
        """A value of the VR that tells of the patient, the secrets in it, and the clinical words around them."""
        who, rng = self._who, self._rng
        limit = _LIMITS.get(vr, 1000)
        surname, given = who.secrets["surname"], who.given
        if table_rows.rows()[tag]["retain-device-identity"] and vr in _DEVICE_VRS:
            serial = str(rng.randrange(10**8, 10**9))  # a device's, so that an option may keep it
            serial = serial if vr in ("DS", "IS") else f"DEV{serial}"
            return (serial.encode() if vr == "OB" else serial), [("device serial", serial)], ()
        if vr == "PN":
            doctor = kind == "physician"
            family, first = who.physician if doctor else (who.family, given)
            what = "physician's surname" if doctor else "surname"
            return f"{family}^{first}", [(what, word) for word in family.split()], ()
        if vr in ("LO", "LT", "SH", "ST", "UC", "UT"):
            return self._text(kind, limit)
        if vr in ("CS", "AE"):
            word = _ascii(surname).upper()[:limit]
            return word, [("surname", word)], ()
        if vr == "UR":
            return who.secrets["web address"], [("web address", who.secrets["web address"])], ()
        if vr in ("OB", "OW", "UN"):
            raw = f"{given} {surname} {who.secrets['record number']}".encode()
            return (
                raw + b" " * (len(raw) % 2),
                [("surname", surname), ("record number", who.secrets["record number"])],
                (),
            )
        if vr in ("DS", "IS"):
            digits = who.secrets["record number"][3:]
            return digits, [("record number", digits)], ()
        if vr == "SQ":
            item = Dataset()
            item.PersonName, item.ReferencedSOPInstanceUID = who.name, self._uids["frame"]
            return Sequence([item]), [("surname", surname)], ()
        simple: dict[str, object] = {
            "DA": f"{rng.choice([who.birth, who.study]):%Y%m%d}", "DT": f"{who.study:%Y%m%d}101500", "TM": "101500",
            "AS": who.age, "UI": f"{self._uids['study']}.{tag}", "US": 4711, "UL": 4711, "SS": 4711, "SL": 4711,
            "FD": 4711.5, "FL": 4711.5,
        }  # fmt: skip
        return simple[vr], [], ()

    def _text(self, kind: str, limit: int) -> tuple[str, list[tuple[str, str]], tuple[str, ...]]:
        who, rng, secret = self._who, self._rng, self._who.secrets
        if kind in secret:
            return secret[kind][:limit], [(kind, secret[kind][:limit])], ()
        if kind == "address":
            return f"{secret['street']}, {secret['city']}", [("street", secret["street"]), ("city", secret["city"])], ()
        phrase = rng.choice(who.phrases)
        templates = [
            ("{phrase} {surname}", ["surname"]), ("{phrase}, {given name} {surname}", ["given name", "surname"]),
            ("{surname} {phrase}", ["surname"]), ("{phrase} Dr. {physician's surname}", ["physician's surname"]),
            ("{phrase} {written date}", ["written date"]), ("{phrase}; tel. {telephone}", ["telephone"]),
            ("{national id} {phrase}", ["national id"]), ("{phrase} {e-mail}", ["e-mail"]),
            ("{phrase} ({record number})", ["record number"]), ("{phrase} {patient id}", ["patient id"]),
            ("{hospital}: {phrase}", ["hospital"]), ("{phrase} {accession number}", ["accession number"]),
            ("{phrase}. {web address}", ["web address"]), ("{phrase} - {street}, {city}", ["street", "city"]),
            ("{given name} {surname}, {written date}. {phrase}. {national id}, {telephone}",
             ["given name", "surname", "written date", "national id", "telephone"]),
        ]  # fmt: skip
        templates += [
            (form, [kind for kind in ("relative's surname", "telephone") if f"{{{kind}}}" in form])
            for form in who.relatives
        ]
        if "second surname" in secret:
            templates.append(("{surname} {second surname}: {phrase}", ["surname", "second surname"]))
        rng.shuffle(templates)
        for template, kinds in templates:
            text = template.format(phrase=phrase, **secret)
            if len(text) <= limit:
                return text, [(one, secret[one]) for one in kinds], tuple(_WORD.findall(phrase))
        short = [(one, text) for one, text in secret.items() if len(text) <= limit]
        one = rng.choice(short)
        return one[1], [one], ()

    def _private(self) -> None:
        """A private block with text, a name, bytes and a sequence, and elements without a creator."""
        secret = self._who.secrets
        block = self.ds.private_block(0x0009, f"ACME {secret['hospital']}"[:64], create=True)
        block.add_new(0x01, "LO", f"{self._who.given} {secret['surname']}")
        block.add_new(0x02, "PN", self._who.name)
        block.add_new(0x03, "OB", f"{secret['patient id']} {secret['telephone']} ".encode())
        block.add_new(0x04, "UN", f"{secret['national id']} {secret['e-mail']} ".encode())
        inside = Dataset()
        path = (int(block.get_tag(0x05)), 0)
        rows = [tag for tag, row in table_rows.rows().items() if row["vr"]]
        self._draw(inside, path, "private block", self._rng.sample(rows, ROWS_IN_PRIVATE))
        block.add_new(0x05, "SQ", Sequence([inside]))
        self.ds[0x00111234] = DataElement(0x00111234, "LO", secret["record number"])
        for group, creator, low, vr, value in _SAFE:
            owned = self.ds.private_block(group, creator, create=True)
            owned.add_new(low, vr, value)
            self._safe.append(((int(owned.get_tag(low)),), value))
        named = self.ds.private_block(0x0019, "GEMS_ACQU_01", create=True)
        named.add_new(0x9E, "LO", f"axial {secret['surname']}")
        self._keys.append(Plant((int(named.get_tag(0x9E)),), "safe private block", (("surname", secret["surname"]),)))
        kinds = [
            (0x01, ("given name", "surname")), (0x02, ("surname",)), (0x03, ("patient id", "telephone")),
            (0x04, ("national id", "e-mail")),
        ]  # fmt: skip
        for low, names in kinds:
            pairs = tuple((name, secret[name]) for name in names)
            self._keys.append(Plant((int(block.get_tag(low)),), "private block", pairs))
        self._keys.append(
            Plant((0x00111234,), "private without creator", (("record number", secret["record number"]),))
        )

    def _write(self, file: FilePath) -> None:
        """File meta, preamble, overlay, trailing padding and the bytes behind the last pixel, then the file."""
        who, ds = self._who, self.ds
        surname, number = _ascii(who.secrets["surname"]), who.secrets["record number"]
        ds.file_meta.SourceApplicationEntityTitle = surname.upper()[:16]
        ds.file_meta.PrivateInformationCreatorUID = f"{self._uids['study']}.99"
        ds.file_meta.PrivateInformation = f"{number}{surname} ".encode()[: (len(number + surname) + 1) // 2 * 2]
        ds[0x60003000] = DataElement(0x60003000, "OW", f"{number} {surname} ".encode().ljust(64))
        ds[0x60004000] = DataElement(0x60004000, "LT", f"{surname} {number}")
        ds[0xFFFCFFFC] = DataElement(0xFFFCFFFC, "OB", f"{number} {surname} ".encode().ljust(64))
        pairs = (("surname", surname), ("record number", number))
        for place, path in (("file meta", ()), ("overlay", (0x60003000,)), ("trailing padding", (0xFFFCFFFC,))):
            self._keys.append(Plant(path, place, pairs))
        syntax = ds.file_meta.TransferSyntaxUID
        if not syntax.is_encapsulated and ds.BitsAllocated >= 8:
            ds.PixelData = bytes(ds.PixelData) + f"{number} {surname} ".encode().ljust(64)
            self._keys.append(Plant((), "behind the pixels", pairs))
        ds.preamble = f"{number} {surname} {who.given}".encode().ljust(128, b".")[:128]
        self._keys.append(Plant((), "preamble", pairs))
        dcmwrite(file, ds, enforce_file_format=True)


@contextlib.contextmanager
def _leaving_un() -> Iterator[None]:
    """Keep pydicom from turning UN into the VR that it knows."""
    before = pydicom.config.replace_un_with_known_vr
    pydicom.config.replace_un_with_known_vr = False
    try:
        yield
    finally:
        pydicom.config.replace_un_with_known_vr = before


def _ascii(text: str) -> str:
    return text.translate(str.maketrans("áéíóúñüÁÉÍÓÚÑÜ", "aeiounuAEIOUNU"))


def _as_un(item: Dataset) -> bytes:
    """A sequence's value in Implicit VR Little Endian, as PS3.5 6.2.2 wants it inside UN."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    write_dataset(buffer, item, default_encoding)
    body = buffer.getvalue()
    return b"\xfe\xff\x00\xe0" + len(body).to_bytes(4, "little") + body
