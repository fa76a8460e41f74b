"""``python -m benchmarks``: run all benchmarks and write docs/benchmarks.md with the machine's description.

``python -m benchmarks loop.py node.py`` runs these and writes their parts of the page anew; the others stay.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("From a study to its report", ("loop.py",)),
    ("The node at rest", ("node.py",)),
    ("De-identification", ("deid_speed.py",)),
    ("De-identification beside others", ("deid_peers.py",)),
    ("Text in pixels", ("pixel_text.py",)),
    ("Receiving", ("receive.py",)),
    ("Contact sheet and PDF", ("sheet.py",)),
    ("Embedding", ("embed.py",)),
    ("A step of a training", ("training.py",)),
    ("Index", ("index.py",)),
    ("Search beside others", ("neighbours.py",)),
    ("Viewer", ("viewer.py",)),
)


HEAD = """# Benchmarks

Written by `make bench`, a part by `python -m benchmarks NAME.py`. Absolute figures belong to the machine and the day
that each part names; medians where there are rounds."""


def processor() -> str:
    """Model name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine() -> str:
    """One line about where the figures come from."""
    parts = [processor(), f"{os.cpu_count()} cores", f"Linux {platform.release()}"]
    parts += [f"Python {platform.python_version()}", f"torch {version('torch')}"]
    return f"{time.strftime('%Y-%m-%d')}: {', '.join(parts)}."


def held() -> dict[str, str]:
    """Parts of the page as it is, by title."""
    text = PAGE.read_text("utf-8") if PAGE.exists() else ""
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in text.split("\n## ")[1:]}


def main() -> int:
    """Run the parts named on the command line, else all; a part that fails ends the run."""
    wanted, parts = sys.argv[1:], held()
    for title, command in PARTS:
        if wanted and command[0] not in wanted:
            continue
        load = os.getloadavg()[0]
        print(f"{title}: python benchmarks/{' '.join(command)} (load {load:.1f})", flush=True)
        done = subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], capture_output=True, text=True)
        if done.returncode:
            print(done.stdout, done.stderr, file=sys.stderr)
            return done.returncode
        said = [line for line in done.stdout.splitlines() if not line.startswith("{")]
        how = f"`python benchmarks/{' '.join(command)}`; load before: {load:.1f}. {machine()}"
        parts[title] = "\n".join([how, "", *said]).strip()
        print(parts[title], flush=True)
    known = [title for title, _ in PARTS if title in parts]
    page = "\n\n".join([HEAD, *(f"## {title}\n\n{parts[title]}" for title in known)])
    PAGE.write_text(page + "\n", "utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
