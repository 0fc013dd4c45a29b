"""What tests of the server share: servers in threads, and generators that wait to be let go."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.generator import Generator
from fewstep.server.app import create_app
from fewstep.server.guard import Access
from fewstep.server.job import Job
from fewstep.server.metrics import Metrics
from fewstep.server.models import Models, named_openings
from fewstep.server.order import Order
from fewstep.server.run import listening
from fewstep.server.worker import Opening, Worker

KEY = "a key"
"""Of servers that have one."""

LONG_S = 60.0
"""More than anything here takes."""


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    models: Models
    client: httpx.Client

    def post(self, path: str, **fields: Any) -> httpx.Response:
        """The answer to a JSON object."""
        return self.client.post(path, json=fields)


def opening(bundle: Path, **options: Any) -> Opening:
    """How a bundle is opened here."""
    return Opening(Bundle.read(bundle), threads=1, **options)


@contextlib.contextmanager
def serving(
    openings: Sequence[Opening], access: Access | None = None, **options: Any
) -> Iterator[Served]:
    """A server of some models, which are open."""
    metrics = Metrics()
    named = named_openings(openings).items()
    models = Models(Worker(name, each, metrics, **options) for name, each in named)
    app = create_app(models, metrics, access)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", log_config=None))
    with listening("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            with httpx.Client(base_url=url, timeout=LONG_S) as client:
                until(lambda: all(each.ready or each.failure for each in models.values()))
                yield Served(url, models, client)
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def working(opening: Opening, **options: Any) -> Iterator[Worker]:
    """A worker alone, which is open."""
    worker = Worker("alone", opening, options.pop("watcher", Counted()), **options)
    worker.start()
    try:
        until(lambda: worker.ready or worker.failure is not None)
        yield worker
    finally:
        worker.stop()


@dataclass
class Counted:
    """Batches that were made: how many images each had."""

    batches: list[int] = field(default_factory=list)

    def batch(self, model: str, sizes: Sequence[int], timings_ms: Mapping[str, float]) -> None:
        self.batches.extend(sizes)

    def waited(self, model: str, seconds: float) -> None:
        """Nothing to count."""


@dataclass(frozen=True)
class Gated(Opening):
    """Opens generators that stop before every request until ``gate`` is set; ``entered`` is set
    when one has come that far, ``then`` is done instead of the request if it raises."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    then: Callable[[], None] = lambda: None

    def __call__(self) -> Generator:
        generator = super().__call__()
        run, self_ = generator.run, self
        warm = [None, None]  # requests that warm up pass

        def waiting(request: Any, **options: Any) -> Any:
            if warm:
                warm.pop()
                return run(request, **options)
            self_.entered.set()
            assert self_.gate.wait(LONG_S)
            self_.then()
            return run(request, **options)

        generator.run = waiting  # type: ignore[method-assign]
        return generator


def gated(bundle: Path, **options: Any) -> Gated:
    """How a bundle is opened, with a gate."""
    return Gated(Bundle.read(bundle), threads=1, **options)


def until(true: Callable[[], Any]) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


def job_of(worker: Worker, prompt: str = "shirt", seed: int = 0, **order: Any) -> Job:
    """A job for a worker."""
    return Order(prompt, seed=seed, **order).job(worker.model, worker.checks)


def alone(bundle: Path, class_id: int, seeds: Sequence[int], **settings: Any) -> np.ndarray:
    """Images of a class, each made alone."""
    with Generator.open(bundle, threads=1) as generator:
        made = [generator.generate(class_ids=[class_id], seed=s, **settings) for s in seeds]
    return np.concatenate([each.images for each in made])
