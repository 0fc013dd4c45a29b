"""What the server counts, for Prometheus; a registry of its own for every app."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)

Scope = Any


class Metrics:
    """Requests by route and status, and what workers do.

    Args:
        log: is told of every request, in a line, and of its status.
    """

    def __init__(self, log: Callable[[str, int], None] = lambda line, status: None) -> None:
        self._log = log
        registry = self.registry = CollectorRegistry()
        self._requests = Counter(
            "fewstep_http_requests", "Requests.", ("route", "method", "status"), registry=registry
        )
        self._seconds = Histogram(
            "fewstep_http_request_duration_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "fewstep_requests_refused",
            "Requests with images that were answered with 429.",
            ("route",),
            registry=registry,
        )
        self._images = Counter("fewstep_images", "Images made.", ("model",), registry=registry)
        self._batch = Histogram(
            "fewstep_batch_images",
            "Images that were made together.",
            ("model",),
            buckets=_IMAGES,
            registry=registry,
        )
        self._stages = Histogram(
            "fewstep_stage_duration_seconds",
            "Of a batch, by stage; queue: what a request waited; total: without that.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = Gauge(
            "fewstep_queue_requests", "Requests that wait.", ("model",), registry=registry
        )
        self._ready = Gauge(
            "fewstep_model_ready", "Whether a model takes requests.", ("model",), registry=registry
        )

    def watch(self, worker: Any) -> None:
        """Show the queue of a worker, and whether it is ready."""
        self._queue.labels(worker.name).set_function(lambda: worker.queued)
        self._ready.labels(worker.name).set_function(lambda: worker.ready)

    def batch(self, model: str, sizes: Sequence[int], timings_ms: Mapping[str, float]) -> None:
        """Count in what was made, in batches of some sizes."""
        self._images.labels(model).inc(sum(sizes))
        for size in sizes:
            self._batch.labels(model).observe(size)
        for stage, ms in timings_ms.items():
            self._stages.labels(model, stage).observe(ms / 1e3)

    def waited(self, model: str, seconds: float) -> None:
        """Count in what a request waited."""
        self._stages.labels(model, "queue").observe(seconds)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request in, by the pattern of its route: what is unknown has none of its own."""
        route = getattr(scope.get("route"), "path", None) or "other"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if status == 429:
            self._refused.labels(route).inc()
        path = scope["path"].encode("unicode_escape").decode()[:_MOST_PATH]
        self._log(f"{method} {path} {status} {seconds * 1e3:.0f} ms", status)


_METHODS = frozenset(("GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"))
_MOST_PATH = 200  # characters of a line


class Measured:
    """ASGI: tells ``metrics`` of every request to ``app``."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def sent(message: Mapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            self._metrics.request(scope, status, time.perf_counter() - start)
