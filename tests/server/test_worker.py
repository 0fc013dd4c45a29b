"""A worker: what runs together, who is refused, and what becomes of those who leave or fail.

Images are compared with those of a generator that makes each alone.
"""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving import LONG_S, Counted, Gated, gated, opening, until, working

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import DeviceLostError, EngineError
from fewstep.runtime.generator import Generator
from fewstep.server import worker as worker_module
from fewstep.server.errors import BusyError, GoneError, UnavailableError
from fewstep.server.job import Job, Step
from fewstep.server.order import Order
from fewstep.server.worker import Opening, Worker


def _job(worker: Worker, prompt: str = "shirt", seed: int = 0, **order: Any) -> Job:
    return Order(prompt, seed=seed, **order).job(worker.model, worker.steps_of)


def _alone(bundle: Path, class_id: int, seeds: Sequence[int], **settings: Any) -> np.ndarray:
    with Generator.open(bundle, threads=1) as generator:
        made = [generator.generate(class_ids=[class_id], seed=s, **settings) for s in seeds]
    return np.concatenate([each.images for each in made])


def test_jobs_that_queue_up_run_together_and_give_the_images_they_give_alone(
    tiny_bundle: Path,
) -> None:
    gate, counted = gated(tiny_bundle, max_batch=4), Counted()
    with working(gate, watcher=counted, max_wait_s=LONG_S) as worker:
        first = worker.submit(_job(worker, seed=9))
        gate.entered.wait(LONG_S)
        wanted = [("shirt", 1, 1), ("bag", 5, 2), ("coat", 7, 1)]
        jobs = [worker.submit(_job(worker, p, seed=s, count=n)) for p, s, n in wanted]
        other = worker.submit(_job(worker, seed=3, settings={"steps": 3}))
        gate.gate.set()
        made = [job.future.result(LONG_S) for job in jobs]
        assert first.future.result().batch == 1 and other.future.result(LONG_S).batch == 1
    assert [each.batch for each in made] == [4, 4, 4]
    assert counted.batches == [1, 4, 1]
    for (prompt, seed, count), each in zip(wanted, made, strict=True):
        class_id = ["shirt", "shoe", "bag", "coat"].index(prompt)
        alone = _alone(tiny_bundle, class_id, range(seed, seed + count))
        assert np.array_equal(each.pixels, alone)
        assert each.seeds == tuple(range(seed, seed + count))
        assert each.parameters is not None and each.parameters[1].shape == (8, count, 4)
    assert np.array_equal(other.future.result().pixels, _alone(tiny_bundle, 0, [3], steps=3))


def test_settings_that_say_the_same_are_one_kind_and_edits_run_alone(tiny_bundle: Path) -> None:
    with working(opening(tiny_bundle)) as worker:
        default = worker.model.info.defaults.steps
        kinds = {_job(worker, settings=each).kind for each in ({}, {"steps": default})}
        kinds |= {_job(worker, settings={"num_inference_steps": str(default)}).kind}
        assert len(kinds) == 1
        assert _job(worker, settings={"steps": 2}).kind not in kinds
        assert not _job(worker, edit={"image": None}).joins


def test_one_alone_does_not_wait(tiny_bundle: Path) -> None:
    with working(opening(tiny_bundle)) as worker:
        waits = []
        for seed in range(20):
            made = worker.submit(_job(worker, seed=seed)).future.result(LONG_S)
            waits.append(made.timings_ms["queue"])
            time.sleep(0.006)  # as one who comes back
    assert statistics.median(waits) < 2


def test_who_leaves_while_waiting_is_not_served(tiny_bundle: Path) -> None:
    gate, counted = gated(tiny_bundle), Counted()
    with working(gate, watcher=counted, max_wait_s=LONG_S) as worker:
        first = worker.submit(_job(worker))
        gate.entered.wait(LONG_S)
        leaves, stays = (worker.submit(_job(worker, seed=each)) for each in (1, 2))
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

        job = Order("shoe", seed=1).job(worker.model, worker.steps_of, seen)
        worker.submit(job)
        with pytest.raises(GoneError):
            job.future.result(LONG_S)
        after = worker.submit(_job(worker)).future.result(LONG_S)  # the worker goes on
    assert len(steps) == 1 and after.batch == 1


def test_steps_are_told_with_parameters_and_the_images_that_are_wanted(tiny_bundle: Path) -> None:
    steps = list[Step]()
    with working(opening(tiny_bundle, max_batch=2)) as worker:
        order = Order("shoe", count=3, seed=4, partial_images=2, settings={"steps": 6})
        job = order.job(worker.model, worker.steps_of, steps.append)
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
            worker._times.add(_job(worker).kind, 4, 60_000.0)
            worker._times.add(_job(worker).kind, 1, 15_000.0)
        worker.submit(_job(worker, count=4))
        gate.entered.wait(LONG_S)
        taken = [worker.submit(_job(worker, seed=each)) for each in range(4)]
        with pytest.raises(BusyError, match="busy") as refused:
            worker.submit(_job(worker))
        assert 0 < refused.value.retry_after_s <= 120
        worker.submit(_job(worker, settings={"steps": 2}))
        with pytest.raises(BusyError):
            worker.submit(_job(worker, settings={"steps": 3}))
        taken[0].leave()
        worker.submit(_job(worker))  # in its place
        gate.gate.set()


def test_who_takes_longer_than_expected_is_expected_to_take_longer_still(tiny_bundle: Path) -> None:
    gate = gated(tiny_bundle)
    with working(gate) as worker:
        worker._times.add(_job(worker).kind, 8, 100.0)
        worker.submit(_job(worker))
        gate.entered.wait(LONG_S)
        worker._since -= 2.0
        with pytest.raises(BusyError, match=r"about [12]\.\d s"):
            worker.submit(_job(worker))
        gate.gate.set()


def test_requests_of_eight_settings_at_once_are_taken_by_an_idle_worker(tiny_bundle: Path) -> None:
    gate = gated(tiny_bundle)
    with working(gate) as worker:
        for each in range(1, 9):
            worker._times.add(_job(worker, settings={"steps": each}).kind, 1, 30.0)
        jobs = [worker.submit(_job(worker, settings={"steps": each})) for each in range(1, 9)]
        gate.gate.set()
        assert {job.future.result(LONG_S).steps for job in jobs} == set(range(1, 9))


def test_an_idle_worker_takes_whatever_fits_a_request(tiny_bundle: Path) -> None:
    with working(opening(tiny_bundle, max_batch=2), max_wait_s=0) as worker:
        made = worker.submit(_job(worker, count=5)).future.result(LONG_S)
    assert len(made.pixels) == 5


def _load(worker: Worker, clients: int, seconds: float) -> list[float]:
    """Latencies of accepted jobs, of clients that ask again and again."""
    found, end = list[float](), time.perf_counter() + seconds

    def ask(seed: int) -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            try:
                worker.submit(_job(worker, seed=seed)).future.result(LONG_S)
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
        usual, high = _load(worker, 8, 0.5), _load(worker, 40, 0.5)
    assert np.percentile(high, 90) < 1.5 * np.percentile(usual, 90) + 0.02


# What goes wrong


def test_what_fails_together_is_tried_alone(tiny_bundle: Path) -> None:
    calls = list[int]()

    def fail() -> None:
        calls.append(1)
        if len(calls) == 2:  # the first after the one that held the gate
            raise EngineError("too much at once")

    gate = gated(tiny_bundle, then=fail)
    with working(gate, max_wait_s=LONG_S) as worker:
        worker.submit(_job(worker))
        gate.entered.wait(LONG_S)
        jobs = [worker.submit(_job(worker, seed=each)) for each in (1, 2)]
        gate.gate.set()
        made = [job.future.result(LONG_S) for job in jobs]
    assert [each.batch for each in made] == [1, 1]
    assert np.array_equal(made[0].pixels, _alone(tiny_bundle, 0, [1]))


@pytest.mark.parametrize("error", [EngineError("no"), ZeroDivisionError("a defect")])
def test_a_job_that_fails_fails_alone(
    tiny_bundle: Path, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = [error]

    def fail() -> None:
        if errors:
            raise errors.pop()

    gate = gated(tiny_bundle, then=fail)
    gate.gate.set()
    with working(gate) as worker:
        with pytest.raises(type(error)):
            worker.submit(_job(worker)).future.result(LONG_S)
        assert len(worker.submit(_job(worker)).future.result(LONG_S).pixels) == 1
    assert ("ZeroDivisionError" in capsys.readouterr().err) == isinstance(error, ZeroDivisionError)


def test_a_lost_device_ends_a_worker_and_all_that_wait(tiny_bundle: Path) -> None:
    def lose() -> None:
        raise DeviceLostError("the GPU is gone; start a new process")

    gate, told = gated(tiny_bundle, then=lose), list[Worker]()
    with working(gate, max_wait_s=LONG_S, changed=told.append) as worker:
        first = worker.submit(_job(worker))
        gate.entered.wait(LONG_S)
        second = worker.submit(_job(worker))
        gate.gate.set()
        for job in (first, second):
            with pytest.raises(UnavailableError, match="the GPU is gone"):
                job.future.result(LONG_S)
        until(lambda: worker.failure is not None)
        with pytest.raises(UnavailableError, match="the GPU is gone"):
            worker.submit(_job(worker))
        assert not worker.ready and worker in told


def test_a_bundle_that_cannot_be_opened_is_told(tiny_bundle: Path) -> None:
    with working(opening(tiny_bundle, precision="int8")) as worker:
        assert worker.failure is not None and "int8" in str(worker.failure)
        with pytest.raises(UnavailableError, match="int8"):
            worker.submit(_job(worker))


def test_a_defect_of_the_worker_itself_fails_what_runs_and_what_waits(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Counted):
        def batch(self, *told: Any) -> None:
            raise ZeroDivisionError

    gate = gated(tiny_bundle)
    with working(gate, max_wait_s=LONG_S, watcher=Broken()) as worker:
        jobs = [worker.submit(_job(worker))]
        gate.entered.wait(LONG_S)
        jobs.append(worker.submit(_job(worker)))
        gate.gate.set()
        for job in jobs:
            with pytest.raises(UnavailableError, match="ZeroDivisionError"):
                job.future.result(LONG_S)
        assert not worker.ready and worker.failure is not None
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_while_jobs_are_tried_alone_they_count_as_running(tiny_bundle: Path) -> None:
    running = list[int]()

    def fail() -> None:
        running.append(len(worker.running))
        if len(running) == 2:
            raise EngineError("too much at once")

    gate = gated(tiny_bundle, then=fail)
    with working(gate, max_wait_s=LONG_S) as worker:
        worker.submit(_job(worker))
        gate.entered.wait(LONG_S)
        jobs = [worker.submit(_job(worker, seed=each)) for each in (1, 2)]
        gate.gate.set()
        for job in jobs:
            job.future.result(LONG_S)
    assert running == [1, 2, 2, 1]


def test_models_open_one_after_the_other(tiny_bundle: Path) -> None:
    open_now, most = list[int](), list[int]()

    @dataclasses.dataclass(frozen=True)
    class Slow(Opening):
        def __call__(self) -> Generator:
            open_now.append(1)
            most.append(len(open_now))
            time.sleep(0.02)
            open_now.pop()
            return super().__call__()

    both = [Worker(str(each), Slow(Bundle.read(tiny_bundle)), Counted()) for each in range(2)]
    for each in both:
        each.start()
    until(lambda: all(each.ready for each in both))
    for each in both:
        each.stop()
    assert most == [1, 1]


def _stops_after_one_batch(bundle: Path, end: Any) -> Job:
    """A job of three batches that nobody watches; ``end`` is done while the first one is made."""
    gate = gated(bundle, max_batch=1)
    batches = list[int]()
    with working(gate) as worker:
        job = worker.submit(_job(worker, count=3))
        gate.entered.wait(LONG_S)
        generator = worker.generator
        assert generator is not None
        run = generator.plans.run

        def counted(*args: Any) -> Any:
            batches.append(1)
            return run(*args)

        generator.plans.run = counted  # type: ignore[method-assign]
        end(worker, job)
        gate.gate.set()
        until(job.future.done)
        until(lambda: not worker.running or worker._stopping)
    assert len(batches) == 1
    return job


def test_a_job_that_nobody_watches_stops_after_a_batch_when_its_client_goes(
    tiny_bundle: Path,
) -> None:
    job = _stops_after_one_batch(tiny_bundle, lambda worker, job: job.leave())
    assert isinstance(job.future.exception(), GoneError)


def test_what_runs_too_long_is_ended_when_the_server_ends(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "FINISH_S", 0.0)
    job = _stops_after_one_batch(tiny_bundle, lambda worker, job: worker.drain())
    assert isinstance(job.future.exception(), UnavailableError)


def test_stopping_does_not_wait_forever(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "FINISH_S", 0.0)
    monkeypatch.setattr(worker_module, "_CLOSE_S", 0.05)
    gate = gated(tiny_bundle)
    with working(gate) as worker:
        worker.submit(_job(worker))
        gate.entered.wait(LONG_S)
        worker.stop()
        assert "did not end in time" in str(worker.failure)
        gate.gate.set()
        worker._thread.join()


def test_draining_finishes_what_runs_and_refuses_the_rest(tiny_bundle: Path) -> None:
    gate: Gated = gated(tiny_bundle)
    with working(gate, max_wait_s=LONG_S) as worker:
        runs = worker.submit(_job(worker))
        gate.entered.wait(LONG_S)
        waits = worker.submit(_job(worker, seed=1))
        worker.drain()
        with pytest.raises(UnavailableError, match="shutting down"):
            waits.future.result(LONG_S)
        with pytest.raises(UnavailableError, match="shutting down"):
            worker.submit(_job(worker))
        gate.gate.set()
        assert len(runs.future.result(LONG_S).pixels) == 1
        worker.stop()
        generator = worker.generator
        assert generator is not None and generator._plans is None  # closed, in its thread
