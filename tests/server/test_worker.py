"""A worker: what runs together, who is refused, and what becomes of those who leave.

Images are compared with those of a generator that makes each alone.
"""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tests.serving import LONG_S, Counted, alone, gated, job_of, opening, working

from fewstep.server.errors import BusyError, GoneError
from fewstep.server.job import Step
from fewstep.server.order import Order
from fewstep.server.worker import Worker


def test_jobs_that_queue_up_run_together_and_give_the_images_they_give_alone(
    tiny_bundle: Path,
) -> None:
    gate, counted = gated(tiny_bundle, max_batch=4), Counted()
    with working(gate, watcher=counted, max_wait_s=LONG_S) as worker:
        first = worker.submit(job_of(worker, seed=9))
        gate.entered.wait(LONG_S)
        wanted = [("shirt", 1, 1), ("bag", 5, 2), ("coat", 7, 1)]
        jobs = [worker.submit(job_of(worker, p, seed=s, count=n)) for p, s, n in wanted]
        other = worker.submit(job_of(worker, seed=3, settings={"steps": 3}))
        gate.gate.set()
        made = [job.future.result(LONG_S) for job in jobs]
        assert first.future.result().batch == 1 and other.future.result(LONG_S).batch == 1
    assert [each.batch for each in made] == [4, 4, 4]
    assert counted.batches == [1, 4, 1]
    for (prompt, seed, count), each in zip(wanted, made, strict=True):
        class_id = ["shirt", "shoe", "bag", "coat"].index(prompt)
        single = alone(tiny_bundle, class_id, range(seed, seed + count))
        assert np.array_equal(each.pixels, single)
        assert each.seeds == tuple(range(seed, seed + count))
        assert each.parameters is not None and each.parameters[1].shape == (8, count, 4)
    assert np.array_equal(other.future.result().pixels, alone(tiny_bundle, 0, [3], steps=3))


def test_settings_that_say_the_same_are_one_kind_and_edits_run_alone(tiny_bundle: Path) -> None:
    with working(opening(tiny_bundle)) as worker:
        default = worker.model.info.defaults.steps
        kinds = {job_of(worker, settings=each).kind for each in ({}, {"steps": default})}
        kinds |= {job_of(worker, settings={"num_inference_steps": str(default)}).kind}
        assert len(kinds) == 1
        assert job_of(worker, settings={"steps": 2}).kind not in kinds
        assert not job_of(worker, edit={"image": np.zeros((8, 8, 3), np.uint8)}).joins


def test_one_alone_does_not_wait(tiny_bundle: Path) -> None:
    with working(opening(tiny_bundle)) as worker:
        waits = []
        for seed in range(20):
            made = worker.submit(job_of(worker, seed=seed)).future.result(LONG_S)
            waits.append(made.timings_ms["queue"])
            time.sleep(0.006)  # as one who comes back
    assert statistics.median(waits) < 2


def test_who_leaves_while_waiting_is_not_served(tiny_bundle: Path) -> None:
    gate, counted = gated(tiny_bundle), Counted()
    with working(gate, watcher=counted, max_wait_s=LONG_S) as worker:
        first = worker.submit(job_of(worker))
        gate.entered.wait(LONG_S)
        leaves, stays = (worker.submit(job_of(worker, seed=each)) for each in (1, 2))
        leaves.leave()
        assert worker.queued == 1
        gate.gate.set()
        stays.future.result(LONG_S), first.future.result(LONG_S)
    assert leaves.future.cancelled() and counted.batches == [1, 1]


def test_a_watched_job_stops_after_a_step_when_its_client_goes(tiny_bundle: Path) -> None:
    steps = list[Step]()
    with working(opening(tiny_bundle)) as worker:

        def seen(step: Step) -> None:
            steps.append(step)
            job.leave()

        job = Order("shoe", seed=1).job(worker.model, worker.checks, seen)
        worker.submit(job)
        with pytest.raises(GoneError):
            job.future.result(LONG_S)
        after = worker.submit(job_of(worker)).future.result(LONG_S)  # the worker goes on
    assert len(steps) == 1 and after.batch == 1


def test_steps_are_told_with_parameters_and_the_images_that_are_wanted(tiny_bundle: Path) -> None:
    steps = list[Step]()
    with working(opening(tiny_bundle, max_batch=2)) as worker:
        order = Order("shoe", count=3, seed=4, partial_images=2, settings={"steps": 6})
        job = order.job(worker.model, worker.checks, steps.append)
        made = worker.submit(job).future.result(LONG_S)
    assert made.steps == 6 and made.batch == 2
    seen = [(each.number, each.first) for each in steps]
    assert seen == [(number, first) for first in (0, 2) for number in range(6)]
    shown = [each for each in steps if each.pixels is not None]
    assert [each.number for each in shown] == [1, 3, 1, 3]
    assert made.parameters is not None
    for each in steps:
        assert each.parameters is not None
        count = len(each.undecided)
        rows = slice(each.first, each.first + count)
        assert np.array_equal(each.parameters[1], made.parameters[1][: each.number + 1, rows])
        assert each.pixels is None or each.pixels.shape == (count, 8, 8, 3)


# Who is refused


def test_the_queue_takes_one_full_batch_beside_the_one_that_runs_and_one_of_other_settings(
    tiny_bundle: Path,
) -> None:
    gate = gated(tiny_bundle, max_batch=4)
    with working(gate) as worker:
        for _ in range(30):  # what runs is far from done
            worker._times.add(job_of(worker).kind, 4, 60_000.0)
            worker._times.add(job_of(worker).kind, 1, 15_000.0)
        worker.submit(job_of(worker, count=4))
        gate.entered.wait(LONG_S)
        taken = [worker.submit(job_of(worker, seed=each)) for each in range(4)]
        with pytest.raises(BusyError, match="busy") as refused:
            worker.submit(job_of(worker))
        assert 0 < refused.value.retry_after_s <= 120
        worker.submit(job_of(worker, settings={"steps": 2}))
        with pytest.raises(BusyError):
            worker.submit(job_of(worker, settings={"steps": 3}))
        taken[0].leave()
        worker.submit(job_of(worker))  # in its place
        gate.gate.set()


def test_who_takes_longer_than_expected_is_expected_to_take_longer_still(tiny_bundle: Path) -> None:
    gate = gated(tiny_bundle)
    with working(gate) as worker:
        worker._times.add(job_of(worker).kind, 8, 100.0)
        worker.submit(job_of(worker))
        gate.entered.wait(LONG_S)
        worker._since -= 2.0
        with pytest.raises(BusyError, match=r"about [12]\.\d s"):
            worker.submit(job_of(worker))
        gate.gate.set()


def test_requests_of_eight_settings_at_once_are_taken_by_an_idle_worker(tiny_bundle: Path) -> None:
    gate = gated(tiny_bundle)
    with working(gate) as worker:
        for each in range(1, 9):
            worker._times.add(job_of(worker, settings={"steps": each}).kind, 1, 30.0)
        jobs = [worker.submit(job_of(worker, settings={"steps": each})) for each in range(1, 9)]
        gate.gate.set()
        assert {job.future.result(LONG_S).steps for job in jobs} == set(range(1, 9))


def test_an_idle_worker_takes_whatever_fits_a_request(tiny_bundle: Path) -> None:
    with working(opening(tiny_bundle, max_batch=2), max_wait_s=0) as worker:
        made = worker.submit(job_of(worker, count=5)).future.result(LONG_S)
    assert len(made.pixels) == 5


def _load(worker: Worker, clients: int, seconds: float) -> list[float]:
    """Latencies of accepted jobs, of clients that ask again and again."""
    found, end = list[float](), time.perf_counter() + seconds

    def ask(seed: int) -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            try:
                worker.submit(job_of(worker, seed=seed)).future.result(LONG_S)
            except BusyError:
                time.sleep(0.02)
            else:
                found.append(time.perf_counter() - start)

    threads = [threading.Thread(target=ask, args=(each,)) for each in range(clients)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return found


def test_ten_times_the_load_does_not_make_accepted_jobs_wait_longer(tiny_bundle: Path) -> None:
    """With a generator that takes 40 ms for any batch of 4."""
    gate = gated(tiny_bundle, max_batch=4)
    gate.gate.set()
    gate = dataclasses.replace(gate, then=lambda: time.sleep(0.04))
    with working(gate) as worker:
        _load(worker, 8, 0.2)  # times are learned
        usual, high = _load(worker, 8, 0.5), _load(worker, 80, 0.5)  # which may take 0.8 s
    assert np.percentile(high, 90) < 2 * np.percentile(usual, 90) + 0.1
