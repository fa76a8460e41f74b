"""The composition root: the only module that wires parts together.

``Node`` opens what lies under ``data_dir``, each part when it is first asked for; ``serving`` runs the node's
processes with it. Heavy parts (torch, highdicom) are imported where they are wired, so that a receiver starts in a
second and ``--help`` at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import importlib.resources
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dicomnode import __version__
from dicomnode.config import Settings
from dicomnode.errors import Busy, DicomnodeError, PeerRefused, SettingsError, VaultError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dicomnode.archive.answers import Answers
    from dicomnode.archive.catalogue import Catalogue
    from dicomnode.archive.objects import ObjectStore
    from dicomnode.archive.quarantine import Quarantine
    from dicomnode.archive.thumbnails import Thumbnails
    from dicomnode.archive.users import Users
    from dicomnode.deid.pool import DeidPool
    from dicomnode.deid.recipe import Recipe
    from dicomnode.deid.vault import KeySource, Vault
    from dicomnode.domain import ModelId, PseudoUid
    from dicomnode.index.repository import VectorIndex
    from dicomnode.models.embedder import Embedder
    from dicomnode.models.manifest import Manifest
    from dicomnode.scp.server import Service
    from dicomnode.scp.spool import Spool
    from dicomnode.telemetry.audit import AuditEvent, AuditTrail
    from dicomnode.telemetry.metrics import Metrics
    from dicomnode.web.sessions import SignIn
    from dicomnode.workflow.context import Context, Folders
    from dicomnode.workflow.deidentify import DeidContext
    from dicomnode.workflow.models import Model, Models
    from dicomnode.workflow.peers import Destination
    from dicomnode.workflow.querying import RepositoryQueries


ACTIVE_PACK = "active_pack"  # in the catalogue: folder of the pack in force; absent: [models] pack


def packs_folder() -> Path:
    """Folder of the shipped model packs: in the wheel, else in the checkout."""
    shipped = importlib.resources.files("dicomnode") / "_config" / "packs"
    folder = Path(str(shipped))
    return folder if folder.is_dir() else Path(__file__).parent.parent / "config" / "packs"


@dataclass
class Node:
    """The parts of one node, opened when first asked for.

    Parameters
    ----------
    settings : Settings
        Checked settings.
    prepared : bool
        The catalogue's tables are current: who started this process has seen to it.
    """

    settings: Settings
    prepared: bool = False

    def close(self) -> None:
        """End the child processes and close the databases that were opened; may be called more than once."""
        for part in ("deid", "models", "spool"):
            if part in self.__dict__:
                self.__dict__[part].close()
        if "_engine" in self.__dict__:
            self._engine.dispose()

    @property
    def data_dir(self) -> Path:
        return self.settings.node.data_dir.absolute()  # what is printed says where it is

    @property
    def runtime(self) -> Path:
        return self.data_dir / "runtime"

    @cached_property
    def metrics(self) -> Metrics:
        from dicomnode.telemetry.metrics import Metrics

        return Metrics(self.runtime / "metrics")

    @cached_property
    def audit(self) -> AuditTrail:
        from dicomnode.telemetry.audit import AuditTrail

        return AuditTrail(self.data_dir / "audit")

    def record(self, event: AuditEvent, **what: Any) -> None:
        """Append to the audit trail as the operator of this command; ``what`` as ``AuditTrail.record`` takes it."""
        self.audit.record(event, actor=f"command:{getpass.getuser()}", **what)

    @cached_property
    def spool(self) -> Spool:
        from dicomnode.scp.spool import Spool

        return Spool.open(self.settings.identified_dir)

    @property
    def vault_place(self) -> tuple[Path, KeySource]:
        """Where the vault is, and where its key comes from."""
        from dicomnode.deid.vault import KeySource

        v = self.settings.vault
        key = KeySource(self.data_dir / "vault.key", file=v.key_file, env=v.key_env, command=v.key_command)
        return self.settings.identified_dir / "vault.sqlite3", key

    @cached_property
    def vault(self) -> Vault:
        from dicomnode.deid.vault import Vault

        path, key = self.vault_place
        make_folder(self.settings.identified_dir, private=True)
        if not path.exists() and self.catalogue.study_sources():
            raise VaultError(
                "the repository has studies but its vault is gone: new pseudonyms would not fit them",
                place=str(path),
                advice="restore the vault and its key from their backup",
            )
        vault = Vault.open(path, key)
        if vault.created:
            where = f"{path}; its key is {key.path or f'[vault] key_{key.name}'}"
            sys.stderr.write(
                f"vault created: {where}: keep a copy of the key elsewhere, a lost one cannot be made again\n"
            )
        return vault

    @cached_property
    def _engine(self) -> Any:
        from dicomnode.archive.database import open_engine

        make_folder(self.data_dir)
        engine = open_engine(self.settings.database.url or self.data_dir / "catalogue.sqlite3")
        if not self.prepared:
            from dicomnode.archive.migrate import upgrade

            upgrade(engine)
        return engine

    @cached_property
    def catalogue(self) -> Catalogue:
        from dicomnode.archive.catalogue import Catalogue

        return Catalogue(self._engine, organisation=self.settings.node.organisation)

    @cached_property
    def answers(self) -> Answers:
        from dicomnode.archive.answers import Answers

        return Answers(self._engine)

    @cached_property
    def quarantine(self) -> Quarantine:
        from dicomnode.archive.quarantine import Quarantine

        return Quarantine(self._engine)

    @cached_property
    def users(self) -> Users:
        from dicomnode.archive.users import Users

        return Users(self._engine)

    @cached_property
    def sign_in(self) -> SignIn | None:
        """What the web side signs people in with; None where ``[web] auth`` asks for no sign-in."""
        from dicomnode.web.sessions import SignIn

        if not self.settings.web.auth.method:
            return None
        return SignIn(
            users=self.users,
            form_key=bytes.fromhex(self.vault.keyed_hash("web", "forms")),
            link_created=self.answers.created_of,
            record=self.audit.record,
            link_days=self.settings.web.link_days,
        )

    @cached_property
    def objects(self) -> ObjectStore:
        from dicomnode.archive.objects import ObjectStore

        url = self.settings.archive.url
        return ObjectStore(Path(url) if url else self.data_dir / "archive")

    @cached_property
    def thumbnails(self) -> Thumbnails:
        from dicomnode.archive.thumbnails import Thumbnails

        return Thumbnails(self.data_dir / "thumbnails")

    @cached_property
    def folders(self) -> Folders:
        from dicomnode.workflow.context import Folders

        folders = Folders(
            work=self.data_dir / "work",
            results=self.data_dir / "results",
            outbox=self.settings.identified_dir / "outbox",
        )
        make_folder(self.settings.identified_dir, private=True)
        make_folder(folders.outbox, private=True)
        for folder in (folders.work, folders.results):
            make_folder(folder)
        return folders

    @cached_property
    def deid(self) -> DeidPool:
        from dicomnode.deid.pool import DeidPool, PixelPolicy

        d, key = self.settings.deid, self.vault.uid_key
        pixels, site = PixelPolicy.of(d), self.recipe.site
        return DeidPool(d.options, key, profile=d.profile, workers=d.workers, site=site, pixels=pixels)

    @property
    def pack_folders(self) -> tuple[Path, ...]:
        """Where packs are looked for by name: those shipped, then those kept with the repository."""
        return (packs_folder(), self.data_dir / "packs")

    @property
    def pack_dir(self) -> Path:
        """Folder of the pack in force, as committed now."""
        from dicomnode.models.manifest import find_pack

        name = self.catalogue.get(ACTIVE_PACK) or self.settings.models.pack
        return find_pack(name, self.pack_folders)

    def pack_of(self, model_id: ModelId) -> Path | None:
        """Folder of the pack with a model id, None where there is none; damaged packs are passed over."""
        from dicomnode.models.manifest import find_by_model

        return find_by_model(model_id, (self.pack_dir, Path(self.settings.models.pack)), self.pack_folders)

    def check(self) -> None:
        """Refuse settings that would stop a process of the node after its start.

        Raises
        ------
        SettingsError
            Names the setting.
        VaultError
            The vault is there without its key, or the key without its vault.
        """
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError

        from dicomnode.deid.vault import both_or_neither
        from dicomnode.models.manifest import find_pack

        _ = self.recipe
        try:
            find_pack(self.settings.models.pack, self.pack_folders)
        except DicomnodeError as exc:
            raise SettingsError(exc.line, place="[models] pack", advice="dicomnode models list") from None
        both_or_neither(*self.vault_place)
        if self.settings.database.url:
            try:
                make_url(self.settings.database.url).get_dialect().import_dbapi()
            except (ArgumentError, NoSuchModuleError, ImportError):
                raise SettingsError("not a database that can be reached from here", place="[database] url") from None

    @cached_property
    def models(self) -> Models:
        """The model in force, noticed whenever it changes, and those whose vectors are kept."""
        from dicomnode.workflow.models import Models

        return Models(lambda: self.pack_dir, self.pack_of, self.index_of, self.load_pack, self._context_of)

    def load_pack(self, folder: Path) -> Embedder:
        """The networks of a pack on the device of the settings."""
        from dicomnode.models.embedder import Embedder

        return Embedder.load(folder, self.settings.models.device)

    @property
    def embedder(self) -> Embedder:
        """The networks in force now."""
        return self.models.active().embedder()

    @property
    def index(self) -> VectorIndex:
        """The vector index in force now; the pack's manifest is enough, so that a search loads no networks."""
        return self.models.active().index

    def index_of(self, manifest: Manifest) -> VectorIndex:
        """The vector index of one model."""
        from dicomnode.index.repository import VectorIndex

        i = self.settings.index
        return VectorIndex(
            self.data_dir / "index",
            self._engine,
            manifest.model_id,
            manifest.dim,
            backend=i.backend,
            target_recall=i.target_recall,
        )

    def find_services(self) -> tuple[Service, ...]:
        """C-FIND for a receiver, where a peer may use it. Vault, catalogue and index are opened by the first query."""
        from dicomnode.scp.find import find_service

        if not any({"find", "similar"} & set(peer.services) for peer in self.settings.dicom.peers):
            return ()
        return (find_service(lambda: self.queries),)

    @cached_property
    def queries(self) -> RepositoryQueries:
        """What C-FIND asks; loads no networks."""
        from dicomnode.archive.finding import Finder
        from dicomnode.workflow.querying import RepositoryQueries

        indexes = lambda: [model.index for model in self.models.kept()]  # noqa: E731 - asked by each query
        k = self.settings.retrieval.k
        return RepositoryQueries(Finder(self._engine), self.answers, lambda: self.vault, indexes, k)

    @cached_property
    def destinations(self) -> list[Destination]:
        from dicomnode.workflow.peers import Destination

        return [Destination.of(p, self.settings.report.objects) for p in self.settings.dicom.peers]

    @cached_property
    def recipe(self) -> Recipe:
        """The compiled de-identification recipe."""
        from dicomnode.deid.recipe import compile_recipe

        d = self.settings.deid
        return compile_recipe(d.profile, d.options, Path(d.site_recipe) if d.site_recipe else None)

    @property
    def context(self) -> Context:
        """Everything that the workflow's steps call, with the model in force now."""
        return self.models.active().context

    def _context_of(self, model: Model) -> Context:
        from dicomnode.workflow.context import Context, Policy
        from dicomnode.workflow.embedding import StudyEmbedder

        s = self.settings
        return Context(
            spool=self.spool,
            vault=self.vault,
            deid=self.deid,
            objects=self.objects,
            thumbnails=self.thumbnails,
            catalogue=self.catalogue,
            answers=self.answers,
            quarantine=self.quarantine,
            embedder=StudyEmbedder(model.model_id, model.embedder, model.manifest.taught),
            vectors=model.index,
            retriever=model.index.retriever,
            reporter=self.reporter,
            destinations=self.destinations,
            folders=self.folders,
            policy=Policy(
                k=s.retrieval.k,
                default_issuer=s.node.default_issuer,
                answer_rejected=s.retrieval.answer_rejected,
                recipe=self.recipe.sha256,
            ),
            metrics=self.metrics,
            models=self.models,
        )

    @property
    def deid_context(self) -> DeidContext:
        """What "dicomnode deid" needs: no models, no index."""
        from dicomnode.workflow.deidentify import DeidContext

        s, scratch = self.settings, self.settings.identified_dir / "unpacked"
        return DeidContext(self.deid, self.vault, s.node.default_issuer, self.recipe, s.deid.profile, scratch)

    @property
    def reporter(self) -> Any:
        """Builds the objects that are sent."""
        from dicomnode.report.codes import Language
        from dicomnode.workflow.reporting import Reporter

        s = self.settings
        namespace = self.vault.keyed_hash("results", "uid")
        return Reporter(
            namespace=namespace,
            language=Language(s.node.language),
            link_base=self.link_base,
            organisation=s.node.organisation,
            version=__version__,
            serial=hashlib.sha256(namespace.encode()).hexdigest()[:16],
            query_picture=self.query_picture,
            case_picture=self.case_picture,
        )

    @property
    def link_base(self) -> str:
        """Base of the links in reports."""
        w = self.settings.web
        return (w.public_url or f"http://{w.host}:{w.port}").rstrip("/")

    def case_picture(self, uid: PseudoUid, frame: int) -> npt.NDArray[np.uint8] | None:
        """uint8 picture of a slice of the repository, None where it is gone."""
        relative = self.catalogue.path_of(uid)
        return None if relative is None else _picture(self.objects.path(relative), frame)

    def query_picture(self, uid: PseudoUid, frame: int) -> npt.NDArray[np.uint8] | None:
        """uint8 picture of a query's key slice, None where it is no longer kept."""
        relative = self.answers.slice_path(uid)
        return None if relative is None else _picture(self.folders.results / relative, frame)

    def send(self, destination: Destination, file: Path) -> None:
        """Send one object of the outbox; Enhanced SR where the peer takes no Comprehensive SR."""
        from dicomnode.scu.send import accepts, send_files

        calling = self.settings.dicom.ae_titles[0].title
        enhanced = file.with_name(file.stem + ".enhanced.dcm")
        try:
            send_files([file], destination, calling)
        except PeerRefused:
            if not enhanced.exists() or accepts(destination, calling, _sop_class(file)):
                raise
            send_files([enhanced], destination, calling)

    def lock(self, role: str, *, shared: bool = False) -> IO[str]:
        """Hold ``data_dir`` for one role, ``shared`` beside others that share it; released when the process ends.

        Raises
        ------
        Busy
            If another process serves this role on the same folder.
        """
        make_folder(self.runtime)
        handle = (self.runtime / f"{role}.lock").open("w")
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            raise Busy(
                f"another process already serves {role} on this folder",
                place=str(self.data_dir),
                advice="stop it first, or set [node] data_dir",
            ) from None
        return handle

    def is_locked(self, role: str) -> bool:
        """Whether a process serves one role on this folder now."""
        with contextlib.suppress(Busy):
            self.lock(role).close()
            return False
        return True


def make_folder(path: Path, *, private: bool = False) -> None:
    """Make a folder, 0700 where it is of the identified zone.

    Raises
    ------
    SettingsError
        If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o755)
        if private:
            path.chmod(0o700)
    except OSError as exc:
        raise SettingsError(f"cannot make the folder {path}: {exc.strerror}", place="[node] data_dir") from None


def _picture(path: Path, frame: int) -> npt.NDArray[np.uint8] | None:
    from dicomnode.models.preprocess import prepare_dicom

    if not path.exists():
        return None
    try:
        pixels = prepare_dicom(path, frame).picture
    except DicomnodeError:
        return None
    return (pixels * 255).round().astype("uint8")


def _sop_class(file: Path) -> str:
    from pydicom import dcmread

    return str(dcmread(file, specific_tags=["SOPClassUID"], stop_before_pixels=True).SOPClassUID)
