"""Group commit: callers share the work, and one bad item fails only its own caller."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dicomnode.scp.group import GroupCommit


def test_what_waits_while_one_works_is_done_in_one_go():
    started, go_on = threading.Event(), threading.Event()
    batches: list[list[int]] = []

    def work(items):
        batches.append(list(items))
        started.set()
        go_on.wait(5)
        return [i * 10 for i in items]

    group = GroupCommit(work)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(group.run, 1)
        started.wait(5)
        rest = [pool.submit(group.run, i) for i in (2, 3, 4, 5)]
        while len(group._waiting) < 4:
            pass
        go_on.set()
        assert first.result() == 10
        assert [f.result() for f in rest] == [20, 30, 40, 50]
    assert [len(b) for b in batches] == [1, 4]


def test_one_bad_item_fails_only_its_own_caller():
    barrier = threading.Barrier(3)

    def work(items):
        if 13 in items:
            raise ValueError("unlucky")
        return list(items)

    group = GroupCommit(work)

    def call(i):
        barrier.wait(5)
        return group.run(i)

    with ThreadPoolExecutor(3) as pool:
        results = {i: pool.submit(call, i) for i in (1, 13, 2)}
        assert (results[1].result(), results[2].result()) == (1, 2)
        with pytest.raises(ValueError, match="unlucky"):
            results[13].result()
