"""A worker that fails, or ends: what becomes of jobs, models and the process."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving import LONG_S, Counted, Gated, alone, gated, job_of, opening, until, working

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import DeviceLostError, EngineError
from fewstep.runtime.generator import Generator
from fewstep.server import worker as worker_module
from fewstep.server.errors import GoneError, UnavailableError
from fewstep.server.job import Job
from fewstep.server.worker import Opening, Worker


def test_what_fails_together_is_tried_alone(tiny_bundle: Path) -> None:
    calls = list[int]()

    def fail() -> None:
        calls.append(1)
        if len(calls) == 2:  # the first after the one that held the gate
            raise EngineError("too much at once")

    gate = gated(tiny_bundle, then=fail)
    with working(gate, max_wait_s=LONG_S) as worker:
        worker.submit(job_of(worker))
        gate.entered.wait(LONG_S)
        jobs = [worker.submit(job_of(worker, seed=each)) for each in (1, 2)]
        gate.gate.set()
        made = [job.future.result(LONG_S) for job in jobs]
    assert [each.batch for each in made] == [1, 1]
    assert np.array_equal(made[0].pixels, alone(tiny_bundle, 0, [1]))


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
            worker.submit(job_of(worker)).future.result(LONG_S)
        assert len(worker.submit(job_of(worker)).future.result(LONG_S).pixels) == 1
    assert ("ZeroDivisionError" in capsys.readouterr().err) == isinstance(error, ZeroDivisionError)


def test_a_lost_device_ends_a_worker_and_all_that_wait(tiny_bundle: Path) -> None:
    def lose() -> None:
        raise DeviceLostError("the GPU is gone; start a new process")

    gate, told = gated(tiny_bundle, then=lose), list[Worker]()
    with working(gate, max_wait_s=LONG_S, changed=told.append) as worker:
        first = worker.submit(job_of(worker))
        gate.entered.wait(LONG_S)
        second = worker.submit(job_of(worker))
        gate.gate.set()
        for job in (first, second):
            with pytest.raises(UnavailableError, match="the GPU is gone"):
                job.future.result(LONG_S)
        until(lambda: worker.failure is not None)
        with pytest.raises(UnavailableError, match="the GPU is gone"):
            worker.submit(job_of(worker))
        assert not worker.ready and worker in told


def test_a_bundle_that_cannot_be_opened_is_told(tiny_bundle: Path) -> None:
    with working(opening(tiny_bundle, precision="int8")) as worker:
        assert worker.failure is not None and "int8" in str(worker.failure)
        with pytest.raises(UnavailableError, match="int8"):
            worker.submit(job_of(worker))


def test_a_defect_of_the_worker_itself_fails_what_runs_and_what_waits(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Counted):
        def batch(self, *told: Any) -> None:
            raise ZeroDivisionError

    gate = gated(tiny_bundle)
    with working(gate, max_wait_s=LONG_S, watcher=Broken()) as worker:
        jobs = [worker.submit(job_of(worker))]
        gate.entered.wait(LONG_S)
        jobs.append(worker.submit(job_of(worker)))
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
        worker.submit(job_of(worker))
        gate.entered.wait(LONG_S)
        jobs = [worker.submit(job_of(worker, seed=each)) for each in (1, 2)]
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
        job = worker.submit(job_of(worker, count=3))
        gate.entered.wait(LONG_S)
        generator = worker.generator
        assert generator is not None
        run = generator.plans.run

        def counted(*args: Any) -> Any:
            batches.append(1)
            return run(*args)

        generator.plans.run = counted  # type: ignore[assignment, method-assign]
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
        worker.submit(job_of(worker))
        gate.entered.wait(LONG_S)
        worker.stop()
        assert "did not end in time" in str(worker.failure)
        gate.gate.set()
        worker._thread.join()


def test_draining_finishes_what_runs_and_refuses_the_rest(tiny_bundle: Path) -> None:
    gate: Gated = gated(tiny_bundle)
    with working(gate, max_wait_s=LONG_S) as worker:
        runs = worker.submit(job_of(worker))
        gate.entered.wait(LONG_S)
        waits = worker.submit(job_of(worker, seed=1))
        worker.drain()
        with pytest.raises(UnavailableError, match="shutting down"):
            waits.future.result(LONG_S)
        with pytest.raises(UnavailableError, match="shutting down"):
            worker.submit(job_of(worker))
        gate.gate.set()
        assert len(runs.future.result(LONG_S).pixels) == 1
        worker.stop()
        generator = worker.generator
        assert generator is not None and generator._plans is None  # closed, in its thread
