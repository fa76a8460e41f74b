"""Time and memory of de-identification: ``python benchmarks/deid_speed.py [FOLDER]``.

Measures read + gate + recipe + write, the audit, and fsync, for one process and through the pool, on generated 512 x
512 CT images or on the DICOM files of FOLDER; then the memory of one process over 10,000 files.
"""

from __future__ import annotations

import multiprocessing
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.pool import DeidPool, DeidTask
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.recipe import compile_recipe
from dicomnode.domain import Pseudonym

OPTIONS = (
    "retain-longitudinal-modified-dates",
    "clean-descriptors",
    "clean-pixel-data",
    "retain-patient-characteristics",
)
SUBJECT = Subject(Pseudonym("DN-BENCHMARK2"), -321)
MEMORY_FILES = 10_000
TARGET_MS = 20.0
ROUNDS = 5
BUSY_S = 2.0


def generated_ct(path: Path, number: int) -> Path:
    """A 512 x 512 CT with the attributes of a usual scanner and noise for pixels."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = generate_uid(), generate_uid(), generate_uid()
    ds.ImageType, ds.Modality, ds.Manufacturer = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT", "GE MEDICAL SYSTEMS"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Kowalski^Anna", f"B{number:07d}", "19500101"
    ds.PatientSex, ds.PatientAge, ds.AccessionNumber, ds.StudyID = "F", "070Y", f"ACC{number:07d}", "1234"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20200229"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "101112"
    ds.InstitutionName, ds.StationName, ds.ReferringPhysicianName = "General Hospital", "CT01", "Doctor^Some"
    ds.StudyDescription, ds.SeriesDescription, ds.ProtocolName = "CT CHEST W CONTRAST", "LUNG 1.25 mm", "Thorax routine"
    ds.KVP, ds.SliceThickness, ds.ConvolutionKernel, ds.PatientPosition = "120", "1.25", "LUNG", "HFS"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
    ds.InstanceNumber, ds.PixelSpacing, ds.RescaleIntercept, ds.RescaleSlope = number, [0.7, 0.7], "-1024", "1"
    ds.Rows = ds.Columns = 512
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    block = ds.private_block(0x0009, "GEMS_IDEN_01", create=True)
    block.add_new(0x01, "LO", "GE_GENESIS_FF")
    ds.add_new(0x7FE00010, "OW", secrets.token_bytes(512 * 512 * 2))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(path, ds, enforce_file_format=True)
    return path


def milliseconds(engine: Deidentifier, files: list[Path], out: Path) -> float:
    """Median time of one file."""
    taken = []
    for file in files:
        started = time.perf_counter()
        engine.deidentify(file, out / file.name, SUBJECT)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def main() -> None:
    key = bytes(32)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        if len(sys.argv) > 1:
            files = sorted(Path(sys.argv[1]).rglob("*.dcm"))
        else:
            files = [generated_ct(Path(folder, f"{number}.dcm"), number) for number in range(64)]
        recipe = compile_recipe("basic", OPTIONS)
        header = milliseconds(Deidentifier(recipe, key, fsync=False, audited=False), files, out)
        audited = milliseconds(Deidentifier(recipe, key, fsync=False), files, out)
        synced = milliseconds(Deidentifier(recipe, key), files, out)
        print(f"- {len(files)} files, median of one: read + de-identify + write {header:.1f} ms")
        print(f"- with audit {audited:.1f} ms (target {TARGET_MS:.0f} ms), with audit and fsync {synced:.1f} ms")
        memory(Deidentifier(recipe, key, fsync=False), files, out)
        pooled(key, files, out)


def memory(engine: Deidentifier, files: list[Path], out: Path) -> None:
    """Resident memory after the first files and after MEMORY_FILES."""
    process = psutil.Process()
    sizes = []
    for number in range(MEMORY_FILES):
        engine.deidentify(files[number % len(files)], out / "same.dcm", SUBJECT)
        sizes.append(process.memory_info().rss / 2**20)
    print(f"- resident memory: {sizes[20]:.1f} MB after 20 files, {sizes[-1]:.1f} MB after {MEMORY_FILES}")


def pooled(key: bytes, files: list[Path], out: Path) -> None:
    """Time of a first file (start of the pool), and of the others with one worker and with two, in turn.

    What two busy processes do beside one on this machine is told with it: two threads of one core are no two cores.
    """
    with DeidPool(OPTIONS, key, workers=1) as alone, DeidPool(OPTIONS, key, workers=2) as both:
        started = time.perf_counter()
        both.run([DeidTask(files[0], out / "first.dcm", SUBJECT)])
        first = time.perf_counter() - started
        alone.run([DeidTask(files[0], out / "first.dcm", SUBJECT)])
        each = [[_each(pool, files, out) for pool in (alone, both)] for _ in range(ROUNDS)]
    one, two = (statistics.median(times) for times in zip(*each, strict=True))
    print(
        f"- first file of a pool {first:.2f} s; then one worker {one:.1f} ms a file, two {two:.1f} ms, fsync included"
    )
    print(f"- two workers: {one / two:.2f} times one (target 1.8); two busy loops: {_two_loops():.2f} times one")


def _each(pool: DeidPool, files: list[Path], out: Path) -> float:
    started = time.perf_counter()
    outcomes = pool.run([DeidTask(file, out / file.name, SUBJECT) for file in files])
    return 1000 * (time.perf_counter() - started) / len(outcomes)


def _two_loops() -> float:
    """How much two processes that only count get done beside one."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_count, [0.1, 0.1])
        one = pool.apply(_count, (BUSY_S,))
        return float(sum(pool.map(_count, [BUSY_S, BUSY_S])) / one)


def _count(seconds: float) -> int:
    until, done = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        done += sum(1 for _ in range(1000))
    return done


if __name__ == "__main__":
    main()
