"""What a step of a training costs: python benchmarks/training.py [--rounds N] [--steps N]

Steps of the CE-Net (batch of 16 generated slices, one thread) in processes that keep the memory they free
(dicomnode.models.memory, as "dicomnode train" does) and in processes that do not, in turns. Prints a markdown table:
seconds a step, the share of them that the kernel took, page faults a step, and the ratio. The load of the machine is
printed with it: figures from a busy machine compare nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

WAYS = {"as it comes": False, "memory kept": True}
BATCH, WARM = 16, 2


def child(steps: int, kept: bool) -> None:
    """Time ``steps`` after a few unmeasured ones; one JSON object on stdout."""
    if kept:
        from dicomnode.models.memory import keep_freed_memory

        keep_freed_memory()
    import torch

    from dicomnode.models.training.cenet import build_cenet
    from dicomnode.models.training.losses import segmentation_loss

    torch.set_num_threads(1)
    net = build_cenet("lite0", 1.0, False, 0)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    images = torch.rand(BATCH, 1, 224, 224).contiguous(memory_format=torch.channels_last)
    masks, known = (torch.rand(BATCH, 2, 224, 224) > 0.5).float(), torch.ones(BATCH, 2, dtype=torch.bool)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        segmentation_loss(net(images), masks, known).backward()
        optimiser.step()

    for _ in range(WARM):
        step()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(steps):
        step()
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "seconds": seconds / steps,
                "cpu": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / steps,
                "kernel": (after.ru_stime - before.ru_stime) / steps,
                "faults": (after.ru_minflt - before.ru_minflt) / steps,
            }
        )
    )


def main() -> None:
    """Run the children in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--child", choices=[*WAYS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.steps, WAYS[args.child])
        return
    load = os.getloadavg()[0]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("GLIBC_TUNABLES", None)
    for _ in range(args.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--child", way, "--steps", str(args.steps)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[way].append(json.loads(done.stdout))
    print(f"CE-Net, batch of {BATCH}, 1 thread, {args.rounds} rounds of {args.steps} steps; load before: {load:.1f}.\n")
    print("| memory | s a step | CPU s a step | of it in the kernel | page faults a step | as fast as it comes |")
    print("|---|---|---|---|---|---|")
    for way, rounds in found.items():
        middle = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
        ratios = [a["cpu"] / b["cpu"] for a, b in zip(found["as it comes"], rounds, strict=True)]
        print(
            f"| {way} | {middle['seconds']:.2f} | {middle['cpu']:.2f} | {middle['kernel'] / middle['cpu']:.1%} "
            f"| {middle['faults']:,.0f} | {statistics.median(ratios):.2f} times |"
        )


if __name__ == "__main__":
    main()
