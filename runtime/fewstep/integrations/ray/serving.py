"""The HTTP server as a deployment of Ray Serve: replicas with one generator each, as many as there
are requests for.

    serve run fewstep.integrations.ray.serving:application bundle=/path/to/bundle num_gpus=1

It has the same routes as ``fewstep serve``. Ray's proxy listens, and sends a request to a replica
that has room; a replica takes requests once its generator is open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationError, model_validator
from typing_extensions import Self

from fewstep.integrations.ray import ray_module
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.records import Strict, found_wrong

if TYPE_CHECKING:
    from fastapi import FastAPI

_LOOK_S = 0.05


class Served(Strict):
    """How a bundle is served.

    ``bundle``: its folder, the same one on every machine. ``backend``, ``device``, ``precision``:
    as of ``Generator.open``. ``max_batch``: images decoded together. ``num_cpus``: cores that Ray
    reserves for a replica, and threads that it uses. ``num_gpus``: for a replica; a part of one
    lets several share it. ``min_replicas``, ``max_replicas``: between which Ray scales, towards
    ``target_ongoing_requests`` for each. ``host``: that Ray's proxy listens on; another than this
    machine's needs an ``api_key``.
    """

    bundle: Path
    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    max_batch: PositiveInt = 8
    num_cpus: PositiveInt = 1
    num_gpus: NonNegativeFloat = 0
    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 1
    target_ongoing_requests: float = Field(default=8, gt=0)
    host: str = "127.0.0.1"
    api_key: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must be at most max_replicas")
        return self


def application(given: dict[str, Any]) -> Any:
    """An application for ``ray.serve.run``; what ``serve run`` calls with its ``NAME=VALUE``.

    Args:
        given: fields of :class:`Served`, as Python or as text.

    Raises:
        RequestError: an unknown field, or a value that does not fit; an address that others reach
            without a key.
        BundleError: no bundle there.
        MissingDependencyError: Ray, or what the server needs, is not installed.
    """
    from fewstep.cli.common import serve_module

    serve_module()
    serve = ray_module("ray.serve")
    try:
        served = Served.model_validate(given)
    except ValidationError as error:
        raise RequestError(found_wrong(error, "the application")) from error
    from fewstep.server.guard import Access

    access = Access(served.host, served.api_key)
    if not access.is_local and access.key is None:
        raise RequestError(f"whoever reaches {served.host} could use the server: give an api_key")
    name = Bundle.read(served.bundle).manifest.name

    def build() -> FastAPI:
        return replica_app(served)

    deployment = serve.deployment(
        serve.ingress(build)(Replica),
        name=name,
        ray_actor_options={"num_cpus": served.num_cpus, "num_gpus": served.num_gpus},
        max_ongoing_requests=max(2, round(2 * served.target_ongoing_requests)),
        autoscaling_config={
            "min_replicas": served.min_replicas,
            "max_replicas": served.max_replicas,
            "target_ongoing_requests": served.target_ongoing_requests,
        },
    )
    return deployment.bind()


class Replica:
    """What Ray holds of an app; ``app`` is set by Ray."""

    app: FastAPI

    def check_health(self) -> None:
        """Raise if the generator is of no use any more; Ray starts another replica then."""
        _require_sound(self.app)


def replica_app(served: Served) -> FastAPI:
    """The app of one replica, which starts when its generator is open.

    Raises:
        BundleError: no bundle there.
    """
    from fewstep.server.app import create_app
    from fewstep.server.guard import Access
    from fewstep.server.metrics import Metrics
    from fewstep.server.models import Models, named_openings
    from fewstep.server.worker import Opening, Worker

    opening = Opening(
        Bundle.read(served.bundle),
        backend=served.backend,
        device=served.device,
        precision=served.precision,
        threads=served.num_cpus,
        max_batch=served.max_batch,
    )
    metrics = Metrics()
    models = Models(Worker(name, each, metrics) for name, each in named_openings([opening]).items())
    app = create_app(models, metrics, Access(served.host, served.api_key))
    app.state.models = models
    started = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[None]:
        async with started(app):
            while not all(worker.ready for worker in models.values()):
                _require_sound(app)
                await asyncio.sleep(_LOOK_S)
            yield

    app.router.lifespan_context = opened
    return app


def _require_sound(app: FastAPI) -> None:
    """Raise what a worker failed with."""
    for worker in app.state.models.values():
        if worker.failure is not None:
            raise worker.failure
