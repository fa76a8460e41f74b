"""``python -m benchmarks``: run all benchmarks and write docs/benchmarks.md with the machine's description.

``python -m benchmarks loop.py node.py`` runs these and prints them, and leaves the page as it is.
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
    ("Receiving", ("receive.py",)),
    ("Contact sheet and PDF", ("sheet.py",)),
    ("Embedding", ("embed.py",)),
    ("Index", ("index.py",)),
    ("Viewer", ("viewer.py",)),
)


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


def main() -> int:
    """Run the parts named on the command line, else all: a failure ends the run at once, a missed target at its end."""
    wanted = sys.argv[1:]
    missed: list[str] = []
    pages = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Absolute figures belong to the machine below; medians where there are rounds.",
        "",
        machine(),
    ]
    for title, command in PARTS:
        if wanted and command[0] not in wanted:
            continue
        load = os.getloadavg()[0]
        print(f"{title}: python benchmarks/{' '.join(command)} (load {load:.1f})", flush=True)
        done = subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], capture_output=True, text=True)
        told = done.stderr.splitlines()[-1:]
        if done.returncode and not "".join(told).startswith("missed: "):
            print(done.stdout, done.stderr, file=sys.stderr)
            return done.returncode
        missed += [f"{title}: {line}" for line in told if done.returncode]
        pages += ["", f"## {title}", "", f"`python benchmarks/{' '.join(command)}`; load before: {load:.1f}", ""]
        pages += [line for line in done.stdout.splitlines() if not line.startswith("{")]
    if wanted:  # the page always holds all parts
        print("\n".join(pages))
    else:
        PAGE.write_text("\n".join(pages) + "\n", "utf-8")
        print(f"written: {PAGE}")
    print("\n".join(missed), file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
