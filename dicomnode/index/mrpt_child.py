"""The process that holds an MRPT index, run as ``python -m dicomnode.index.mrpt_child`` by ``mrpt.MrptProcess``.

MRPT 2.0.4 (Hyvönen et al. 2016, arXiv 1509.06957) segfaults on small or truncated input, so it runs in no other
process. Requests are one JSON line and a payload on standard input, replies the same on standard output; it ends with
its parent. Never checks what it is given: the parent does, before.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

import mrpt
import numpy as np

NICE_WHILE_GROWING = 10  # studies that arrive meanwhile go first


class Child:
    """State between requests: the index over the data file, and the part of it that answers."""

    def __init__(self) -> None:
        self.dim = 0
        self.grown: Any = None
        self.active: Any = None

    def open(self, request: dict[str, Any], _payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Map the float32 data file ``data`` of ``n`` rows and ``dim`` columns."""
        self.dim = request["dim"]
        self.grown = mrpt.MRPTIndex(request["data"], shape=(request["n"], self.dim), mmap=True)
        self.active = None
        return {}, b""

    def load(self, request: dict[str, Any], _payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Load the index file ``index`` over the open data."""
        self.grown.load(request["index"])
        self.active = self.grown
        return {"parameters": self.active.parameters()}, b""

    def grow(self, request: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Grow up to ``trees`` trees, tuned for ``k`` neighbours of the queries in the payload."""
        os.nice(NICE_WHILE_GROWING)
        queries = np.frombuffer(payload, dtype="<f4").reshape(-1, self.dim).copy()
        self.grown.build_autotune(None, queries, request["k"], trees_max=request["trees"])
        return {}, b""

    def subset(self, request: dict[str, Any], _payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Take the trees estimated to reach ``level``, and save them as ``index``."""
        self.active = self.grown.subset(request["level"])
        self.active.save(request["index"])
        return {"parameters": self.active.parameters()}, b""

    def query(self, request: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Rows of the ``k`` nearest found for each query of the payload, int32 [m, k], -1 where there are fewer."""
        queries = np.frombuffer(payload, dtype="<f4").reshape(-1, self.dim).copy()
        votes = int(self.active.parameters()["votes"])
        rows = np.asarray(self.active.ann(queries, k=request["k"], votes_required=votes), dtype="<i4")
        return {}, np.ascontiguousarray(rows).tobytes()


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until the parent closes its end."""
    child = Child()
    operations = {f.__name__: f for f in (child.open, child.load, child.grow, child.subset, child.query)}
    while line := requests.readline():
        request = json.loads(line)
        payload = requests.read(request["bytes"])
        try:
            reply, body = operations[request["op"]](request, payload)
        except (ValueError, RuntimeError, IndexError, OverflowError, MemoryError, OSError) as fault:
            reply, body = {"error": f"{type(fault).__name__}: {fault}"}, b""
        replies.write(json.dumps({**reply, "bytes": len(body)}).encode() + b"\n")
        replies.write(body)
        replies.flush()


def main() -> None:
    """Keep standard output for replies alone: whatever the library prints goes to standard error."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            serve(sys.stdin.buffer, replies)
        except BrokenPipeError:
            os._exit(0)  # the parent is gone: nobody is left to tell


if __name__ == "__main__":
    main()
