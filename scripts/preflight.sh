#!/usr/bin/env bash
# Checks for what pip cannot bring, and names the package to install.
set -euo pipefail
python="${1:-python3}"

if ! command -v "$python" >/dev/null; then
  echo "error: $python not found; install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)" >&2
  exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $("$python" --version) is too old; dicomnode needs Python 3.11 or newer (make PYTHON=python3.12 ...)" >&2
  exit 1
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  echo "error: $python has no venv module (Debian: apt-get install python3-venv)" >&2
  exit 1
fi
if [ "$(uname -s)" = Linux ] && ! "$python" -c 'import ctypes; ctypes.CDLL("libGL.so.1")' 2>/dev/null; then
  echo "note: libGL.so.1 is missing: text in pixels cannot be looked for (Debian: apt-get install libgl1 libglib2.0-0)" >&2
fi
if ! command -v c++ >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
  echo "error: no C++ compiler, needed to build mrpt (Debian: apt-get install g++; macOS: xcode-select --install)" >&2
  exit 1
fi
if ! "$python" - <<'PY'
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))
PY
then
  echo "error: Python's C headers are missing, needed to build mrpt (Debian: apt-get install python3-dev)" >&2
  exit 1
fi
