"""The process that holds an MRPT index, run as ``python -m dicomnode.index.mrpt_child FD N DIM`` by ``MrptProcess``.

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

from dicomnode.index.rows import mapped
from dicomnode.index.segments import Vectors

NICE_WHILE_GROWING = 10  # studies that arrive meanwhile go first


class Child:
    """State between requests: the index over the parent's rows, and the part of it that answers."""

    def __init__(self, rows: Vectors) -> None:
        self.rows = rows  # MRPT keeps their address only
        self.dim = rows.shape[1]
        self.grown: Any = mrpt.MRPTIndex(rows)
        self.active: Any = None

    def load(self, request: dict[str, Any], _payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Load the index file ``index`` over the rows."""
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


def serve(child: Child, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until the parent closes its end."""
    operations = {f.__name__: f for f in (child.load, child.grow, child.subset, child.query)}
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
    rows = mapped(*(int(argument) for argument in sys.argv[1:4]))
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            serve(Child(rows), sys.stdin.buffer, replies)
        except BrokenPipeError:
            os._exit(0)  # the parent is gone: nobody is left to tell


if __name__ == "__main__":
    main()
