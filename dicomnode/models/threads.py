"""How the networks' threads wait for each other; to be settled before torch is imported.

torch computes with OpenMP, whose threads wait by spinning (libgomp: OMP_WAIT_POLICY). Where anything else wants the
processors, be it the node's own receivers or another machine's load, the spinning takes them from the thread that is
waited for: a batch of 16 took 0.4 s alone and 3 to 17 s beside two busy processes; waiting passively, 0.4 and 0.5 s.
"""

from __future__ import annotations

import os

WAIT_POLICY = "OMP_WAIT_POLICY"  # OpenMP 5.0, section 6.7; read when the library is loaded


def wait_passively() -> None:
    """Let waiting threads sleep, in this process and its children, unless the operator chose otherwise."""
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")
