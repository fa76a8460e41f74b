"""The manifest of a model pack: what a pack is, said in one JSON file, and the hash that is its identity.

Reads and checks manifests and file hashes without loading the networks, so that ``models list`` is quick. Every vector
carries its ``model_id``; two packs that could give different vectors never share one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dicomnode.domain import ModelId, Shows
from dicomnode.errors import PackError

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
CARD = "card.md"
SEGMENTATION = "segmentation.safetensors"  # optional; see ``dicomnode.models.segmentation``
MASKS = ("lungs", "infection")  # what it outlines, in the order of the network's channels
FAST = "fast.onnx"  # optional; see ``dicomnode.models.fast``
GRAPH = "graph.json"
ONNX = "model.onnx"
CENET_XCEPTION, TORCH_EXPORT, ONNX_KIND = "cenet-xception", "torch-export", "onnx"
# The file that holds the weights, by ``architecture.kind``; a manifest without a kind is of the first.
WEIGHTS_OF = {CENET_XCEPTION: WEIGHTS, TORCH_EXPORT: WEIGHTS, ONNX_KIND: ONNX}
IDENTITY_KEYS = (
    "weights_sha256",
    "architecture",
    "preprocessing",
    "dim",
    "dtype",
    "norm",
    "metric",
    "compaction",
    "calibration",
)
_CHUNK = 1 << 20
_HERE = Path(__file__).resolve().parent.parent
# The repository's own folder first, then the copy inside an installed wheel.
PACK_FOLDERS = (_HERE.parent / "config" / "packs", _HERE / "_config" / "packs")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def model_id_of(identity: Mapping[str, Any]) -> ModelId:
    """``sha256:`` + the hash of the identity as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps({k: identity[k] for k in IDENTITY_KEYS}, sort_keys=True, separators=(",", ":"))
    return ModelId("sha256:" + hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked manifest.

    Attributes
    ----------
    identity : everything that decides a vector (``IDENTITY_KEYS``); ``model_id`` is its hash.
    files : file name -> SHA-256 of every other file of the pack.
    status : "research", "interim" ...; a word for people.
    about : training data and terms, licence, intended use, metrics with confidence intervals.
    """

    name: str
    model_id: ModelId
    status: str
    identity: Mapping[str, Any]
    files: Mapping[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.identity["dim"])

    @property
    def kind(self) -> str:
        """What the network is: "cenet-xception", "torch-export" or "onnx"."""
        return str(self.identity["architecture"].get("kind", CENET_XCEPTION))

    @property
    def weights(self) -> str:
        """Name of the file that holds the weights."""
        return WEIGHTS_OF[self.kind]

    @property
    def segmentation(self) -> str | None:
        """SHA-256 of the file by which the pack outlines lungs and infection; None where it does not."""
        if self.kind != CENET_XCEPTION:
            return None
        with_decoder = "lesion" in self.identity["architecture"]
        return self.files.get(WEIGHTS if with_decoder else SEGMENTATION)

    @property
    def dice(self) -> dict[str, float]:
        """Mean Dice of each mask over the held-out volumes, where the pack says it."""
        said = self.about.get("dice_by_volume")
        found: dict[str, float] = {}
        for name in MASKS:
            by_volume = said.get(name) if isinstance(said, Mapping) else None
            values = list(by_volume.values()) if isinstance(by_volume, Mapping) else []
            if values and all(isinstance(v, int | float) and 0 <= v <= 1 for v in values):
                found[name] = sum(values) / len(values)
        return found

    @property
    def taught(self) -> tuple[Shows, ...]:
        """What the training images showed (``about["taught"]``: modality and region); empty where it is not said."""
        said = self.about.get("taught")
        entries = [s for s in said if isinstance(s, Mapping)] if isinstance(said, list) else []
        return tuple(Shows(str(s.get("modality", "")), str(s.get("region", ""))) for s in entries)

    def as_json(self) -> dict[str, Any]:
        """The object that ``manifest.json`` holds."""
        return {
            "format": FORMAT,
            "name": self.name,
            "model_id": self.model_id,
            "status": self.status,
            "identity": dict(self.identity),
            "files": dict(self.files),
            "about": dict(self.about),
        }


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json`` of a pack; the files beside it are not read.

    Raises
    ------
    PackError
        No pack, unreadable, of another format, or the model_id is not the hash of the identity.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise PackError(f"is not a model pack: it holds no {MANIFEST}", place=str(folder), advice="see [models] pack")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw["format"]
        if version != FORMAT:
            raise PackError(f"has pack format {version}; this version reads {FORMAT}", place=str(path))
        manifest = Manifest(
            str(raw["name"]),
            ModelId(raw["model_id"]),
            str(raw["status"]),
            raw["identity"],
            raw["files"],
            raw.get("about", {}),
        )
        expected = model_id_of(manifest.identity)
        if manifest.kind not in WEIGHTS_OF:
            known = ", ".join(WEIGHTS_OF)
            raise PackError(f"is of the kind {manifest.kind[:40]!r}; this version knows {known}", place=str(path))
        named = manifest.files[manifest.weights] == manifest.identity["weights_sha256"]
        if manifest.kind == TORCH_EXPORT:
            named = named and manifest.files[GRAPH] == manifest.identity["architecture"]["graph_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise PackError("is damaged: a key is missing or it is not JSON", place=str(path), advice=_REINSTALL) from e
    if expected != manifest.model_id or not named:
        raise PackError("model_id does not match the identity it names", place=str(path), advice=_REINSTALL)
    return manifest


_REINSTALL = "restore the pack's folder from where it was installed"


def verify_files(folder: Path, manifest: Manifest, *, without: Iterable[str] = ()) -> None:
    """Compare every file of the pack with its hash, ``without`` those named.

    Raises
    ------
    PackError
        A file is missing or differs.
    """
    for name in (manifest.weights, GOLDEN, CARD):
        if name not in manifest.files:
            raise PackError(f"names no hash for {name}", place=str(folder / MANIFEST), advice=_REINSTALL)
    for name, expected in ((n, h) for n, h in manifest.files.items() if n not in set(without)):
        path = folder / name
        if not path.is_file():
            raise PackError("is missing from the model pack", place=str(path), advice=_REINSTALL)
        try:
            found = sha256_of(path)
        except OSError as e:
            raise PackError("cannot be read", place=str(path), advice=_REINSTALL) from e
        if found != expected:
            raise PackError("does not match its checksum in manifest.json", place=str(path), advice=_REINSTALL)


RUN_CHECKPOINT = "checkpoint.pt"  # in the folder of a training (``training.run``), which is easily taken for a pack


def find_pack(name: str, folders: Iterable[Path] = PACK_FOLDERS) -> Path:
    """The folder of a pack: ``name`` is a folder that holds a manifest, or the name of one in ``folders``.

    Raises
    ------
    PackError
        There is none.
    """
    candidates = [Path(name).expanduser(), *(f / name for f in folders)]
    for folder in candidates:
        if (folder / MANIFEST).is_file():
            return folder
    if (candidates[0] / RUN_CHECKPOINT).is_file():
        line, advice = f"{name} is the folder of a training, not a pack", "dicomnode train xception --pack writes one"
        raise PackError(line, place="[models] pack", advice=advice)
    known = ", ".join(sorted({m.parent.name for f in folders for m in f.glob(f"[!.]*/{MANIFEST}")})) or "none"
    bare = next((folder for folder in candidates if name and folder.is_dir()), None)
    line = f"no model pack is called {name!r}" if bare is None else f"the folder {bare} holds no {MANIFEST}"
    raise PackError(line, place="[models] pack", advice=f"known packs: {known}")


def find_by_model(model_id: ModelId, named: Iterable[Path], folders: Iterable[Path] = PACK_FOLDERS) -> Path | None:
    """The folder of the pack with this model id, among those named and those in ``folders``; None: it is not there.

    A damaged pack is passed over: it is told where it is used.
    """
    listed = (m.parent for f in folders for m in sorted(f.glob(f"[!.]*/{MANIFEST}")))
    for folder in (*named, *listed):
        try:
            if read_manifest(folder).model_id == model_id:
                return folder
        except PackError:
            continue
    return None


def list_packs(folders: Iterable[Path] = PACK_FOLDERS) -> tuple[list[tuple[Path, Manifest]], list[PackError]]:
    """Every pack in ``folders``, by folder name, and what is wrong with each that cannot be read."""
    found: dict[str, Path] = {}
    for folder in folders:
        for manifest in sorted(folder.glob(f"[!.]*/{MANIFEST}")):  # a name with a dot is still being written
            found.setdefault(manifest.parent.name, manifest.parent)
    packs: list[tuple[Path, Manifest]] = []
    unreadable: list[PackError] = []
    for _, path in sorted(found.items()):
        try:
            packs.append((path, read_manifest(path)))
        except PackError as exc:
            unreadable.append(exc)
    return packs, unreadable
