"""``deid``: any number of files into a folder of de-identified, audited files, and what became of each.

Inputs stream through the workers in a fixed order; memory does not grow with their number. A run that was stopped at
any moment goes on where it was (``batch.journal``); its result is that of a run that was not. It never overwrites: of
two objects with one SOP Instance UID the first is kept. A file appears at its place whole and audited, or not at all.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import pydicom
from pydicom.uid import MediaStorageDirectoryStorage

from dicomnode.archive.objects import sha256_of
from dicomnode.deid.faces import Face
from dicomnode.deid.pool import DeidPool, DeidTask
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.quiet import silenced
from dicomnode.deid.recipe import Recipe
from dicomnode.deid.result import DeidResult
from dicomnode.deid.vault import PSEUDONYM_PREFIX, Vault
from dicomnode.domain import Pseudonym
from dicomnode.errors import DicomnodeError, NotFound, QuarantineError, StorageFull
from dicomnode.workflow.batch import inputs as found_inputs
from dicomnode.workflow.batch.choices import INPUT_PREFIX, Layout
from dicomnode.workflow.batch.inputs import Input
from dicomnode.workflow.batch.journal import FAILED, OK, OTHER, QUARANTINED, SKIPPED, Journal, Kept, Row
from dicomnode.workflow.batch.layout import target_of
from dicomnode.workflow.batch.scratch import scratch_folder
from dicomnode.workflow.identity import NOBODY
from dicomnode.workflow.ingest import VERSION_CONFLICT

SUBJECTS = 4096  # patients remembered, so that the vault is not asked for each file
UNREADABLE = "unreadable"  # the word of inputs that could not be opened: failed, and tried again by the next run
_IDENTITY_TAGS = ["PatientID", "IssuerOfPatientID", "StudyInstanceUID"]
_PSEUDONYM_CHARACTERS = 10

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DeidContext:
    """What the command needs of the node: no models, no index. ``scratch``: a folder in the identified zone."""

    deid: DeidPool
    vault: Vault
    default_issuer: str
    recipe: Recipe
    profile: str
    scratch: Path


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: inputs, and where to; ``out`` None does everything and keeps nothing."""

    paths: Sequence[Path]
    out: Path | None
    layout: Layout = Layout.DICOM


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is done, for reports."""

    ctx: DeidContext
    request: Request
    journal: Journal

    def rows(self) -> Iterator[Row]:
        """What became of each input, in order; ``output`` is a whole path."""
        out = self.request.out
        for row in self.journal.rows():
            if row.output is None or out is None:
                yield row
            else:
                yield replace(row, output=str(out / row.output))


@contextlib.contextmanager
def deidentified(ctx: DeidContext, request: Request, progress: Progress | None = None) -> Iterator[Run]:
    """De-identify everything below the paths; the block may read what became of it.

    Parameters
    ----------
    progress : function, optional
        Called with the numbers of inputs that are done and of all.

    Raises
    ------
    UsageError
        A path is not there, or ``out`` was begun with another recipe, vault or layout.
    Busy
        Another run writes to ``out``.
    StorageFull
        There is no room: what was done stays, and the same run goes on later.
    """
    header = {
        "recipe": ctx.recipe.sha256,
        "vault key": ctx.vault.keyed_hash("deid run", ctx.default_issuer)[:16],
        "layout": request.layout.value,
    }
    out = None if request.out is None else request.out.resolve()
    inputs = found_inputs.find(request.paths, out)
    with (
        contextlib.closing(Journal(out, header, ctx.vault.keyed_hash)) as journal,
        scratch_folder(ctx.scratch) as scratch,
    ):
        total = journal.begin(inputs)
        work = _Work(ctx, request, journal, scratch, progress, total)
        if total:
            work.run()
        yield Run(ctx, request, journal)


def locate(ctx: DeidContext, paths: Sequence[Path], input_id: str) -> str:
    """The path of the input that a report names by its hash.

    Raises
    ------
    NotFound
        None of the inputs has it.
    """
    with contextlib.closing(Journal(None, {}, ctx.vault.keyed_hash)) as journal:
        for found in found_inputs.find(paths):
            if journal.input_id(found) == input_id:
                return str(found.root / found.shown)
    raise NotFound(
        "none of the files has this hash", place=f"{INPUT_PREFIX}{input_id}", advice="give the same paths as to the run"
    )


@dataclass(slots=True)
class _Work:
    """One run under way."""

    ctx: DeidContext
    request: Request
    journal: Journal
    scratch: Path
    progress: Progress | None
    total: int
    done: int = 0
    staged: Path = field(init=False)
    _hand: dict[Path, Input] = field(default_factory=dict)  # by the place where it is staged
    _subjects: OrderedDict[tuple[str, str], Subject] = field(default_factory=OrderedDict)
    _archive: tuple[Path, zipfile.ZipFile] | None = None

    def run(self) -> None:
        self.staged = (self.scratch if self.request.out is None else self.journal.folder) / "staged"
        shutil.rmtree(self.staged, ignore_errors=True)  # of a run that was killed
        self.staged.mkdir(mode=0o700)
        self.done = self.journal.finished()
        self._tell()
        try:
            with contextlib.closing(self.ctx.deid.stream(self._tasks())) as outcomes:
                for task, outcome in outcomes:
                    found = self._hand.pop(task.dst)
                    try:
                        self._settle(found, task, outcome)
                    finally:
                        task.dst.unlink(missing_ok=True)
                        if task.src != found.path:
                            task.src.unlink(missing_ok=True)
        finally:
            self.journal.commit()
            if self._archive is not None:
                self._archive[1].close()
            shutil.rmtree(self.staged, ignore_errors=True)

    def _tell(self) -> None:
        if self.progress:
            self.progress(self.done, self.total)

    def _record(self, found: Input, status: str, reason: str = "", **more: object) -> None:
        self.journal.record(found, status, reason, **more)  # type: ignore[arg-type]
        self.done += 1
        self._tell()

    def _tasks(self) -> Iterator[DeidTask]:
        """A task for each input that can be opened; what became of the others is recorded at once."""
        for number, found in enumerate(self.journal.pending()):
            try:
                task = self._task(number, found)
            except QuarantineError as exc:
                self._record(found, QUARANTINED, f"{exc.reason}: {exc}")
            except StorageFull:
                raise
            except DicomnodeError as exc:
                self._record(found, FAILED, str(exc))
            except OSError as exc:
                self._record(found, FAILED, f"{UNREADABLE}: it cannot be read ({type(exc).__name__})")
            else:
                if task is None:
                    self._record(found, SKIPPED, "DICOMDIR")
                    continue
                self._hand[task.dst] = found
                yield task

    def _task(self, number: int, found: Input) -> DeidTask | None:
        """None for a DICOMDIR: its files come by themselves."""
        if found.problem and found.reason == UNREADABLE:
            raise DicomnodeError(f"{UNREADABLE}: {found.problem}")
        if found.reason == "link":
            raise QuarantineError("link", found.problem)
        if found.problem:
            raise QuarantineError(found.reason, found.problem)
        source = found.path
        if found.member >= 0:
            source = self.scratch / f"{number}.dcm"
            found_inputs.unpack(self._opened(found.path), found.member, source)
        identity, is_directory = identity_of(source, self.ctx.default_issuer)
        if is_directory:
            return None
        return DeidTask(source, self.staged / f"{number}.dcm", self._subject(identity), detailed=True)

    def _opened(self, path: Path) -> zipfile.ZipFile:
        """The archive; entries of one archive come in a row, so that its list of entries is read once."""
        if self._archive is None or self._archive[0] != path:
            if self._archive is not None:
                self._archive[1].close()
                self._archive = None
            self._archive = (path, found_inputs.open_archive(path))
        return self._archive[1]

    def _subject(self, identity: tuple[str, str]) -> Subject:
        if identity in self._subjects:
            self._subjects.move_to_end(identity)
            return self._subjects[identity]
        subject = self._ask(identity)
        self._subjects[identity] = subject
        if len(self._subjects) > SUBJECTS:
            self._subjects.popitem(last=False)
        return subject

    def _ask(self, identity: tuple[str, str]) -> Subject:
        """The vault's entry; a dry run makes none, its passing pseudonyms are the same for one patient all the same."""
        vault = self.ctx.vault
        if self.request.out is not None:
            return vault.subject_for(*identity, create=identity != NOBODY)
        known = vault.pseudonym_for(*identity, create=False)
        passing = base64.b32encode(bytes.fromhex(vault.keyed_hash("dry run", "\0".join(identity)))).decode()
        passed = Pseudonym(PSEUDONYM_PREFIX + passing[:_PSEUDONYM_CHARACTERS])
        return Subject(known or passed, vault.days(*identity))

    def _settle(self, found: Input, task: DeidTask, outcome: DeidResult | DicomnodeError) -> None:
        if isinstance(outcome, StorageFull):
            raise StorageFull(
                "the disk is full", place=self.journal.place, advice="free some space, then run the same command again"
            )
        if isinstance(outcome, QuarantineError):
            self._record(found, QUARANTINED, f"{outcome.reason}: {outcome}")
        elif isinstance(outcome, DicomnodeError):
            self._record(found, FAILED, str(outcome))
        else:
            self._keep(found, task, outcome)

    def _keep(self, found: Input, task: DeidTask, result: DeidResult) -> None:
        """Move a de-identified object to its place, unless an object with its UID has come before."""
        me = self.journal.input_id(found)
        before = self.journal.kept(result.instance)
        if before is not None and before.input_id != me:
            if before.sha256 == result.sha256:
                self._record(found, OK, f"duplicate of {OTHER}", other=before.input_id)
            else:
                line = f"{VERSION_CONFLICT}: the SOP Instance UID of {OTHER} with other content; the first was used"
                self._record(found, QUARANTINED, line, other=before.input_id)
            return
        output = None
        if self.request.out is not None:
            target = target_of(self.request.layout, found, task.subject, result, self.ctx.vault.keyed_hash)
            if not self._place(task.dst, target, result.sha256):
                line = f"{VERSION_CONFLICT}: {target} is there already with other content; choose an empty --out"
                self._record(found, QUARANTINED, line)
                return
            output = str(target)
        self.journal.keep(result.instance, Kept(result.sha256, me))
        face = "" if result.face == Face.NONE else result.face
        self._record(found, OK, output=output, changes=result.changes, face=face, pixels=result.pixels)

    def _place(self, staged: Path, target: PurePosixPath, sha256: str) -> bool:
        """False where another file has the name; nothing is overwritten."""
        assert self.journal.out is not None
        place = self.journal.out / target
        if place.exists():
            return sha256_of(place) == sha256
        place.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(place)
        self.journal.written(place)
        return True


def identity_of(path: Path, default_issuer: str) -> tuple[tuple[str, str], bool]:
    """(issuer, Patient ID) for the vault, and whether the file is a DICOMDIR; one look at the header.

    Without Patient ID a study is a patient of its own; without both, or where the header cannot be read, it is
    ``NOBODY``: de-identification says what is wrong with the file.
    """
    try:
        with silenced():
            ds = pydicom.dcmread(path, specific_tags=list(_IDENTITY_TAGS), stop_before_pixels=True, force=True)
            if ds.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                return NOBODY, True
            patient, issuer, study = (str(ds.get(name) or "").strip() for name in _IDENTITY_TAGS)
    except OSError as exc:
        if exc.errno is not None:  # the system's, not pydicom's
            raise
        return NOBODY, False
    except Exception:  # noqa: BLE001 (damage has many names in pydicom; the engine reads the file again and tells it)
        return NOBODY, False
    if patient:
        return (issuer or default_issuer, patient), False
    return (("study", study) if study else NOBODY), False
