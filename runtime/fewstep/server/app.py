"""The app: the APIs over some models, health, metrics, and the page if it is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fewstep import __version__
from fewstep.runtime.errors import FewstepError
from fewstep.server import a1111, openai_api
from fewstep.server.errors import GoneError, message_of, status_of
from fewstep.server.guard import Access, Guard
from fewstep.server.metrics import CONTENT_TYPE, Measured, Metrics
from fewstep.server.models import Models
from fewstep.server.notes import warnings_noted

PAGE = Path(__file__).parent / "page"

UPLOADS = frozenset((openai_api.EDITS, a1111.IMG2IMG))
"""Paths that take pictures."""


def create_app(models: Models, metrics: Metrics, access: Access | None = None) -> FastAPI:
    """The app for some models.

    When it starts, their workers do; when it ends, they have closed their generators.

    Args:
        models: that are served; their workers tell ``metrics`` what they do.
        metrics: what is counted.
        access: who may ask; by default who names this machine.
    """
    access = access or Access()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for worker in models.values():
            metrics.watch(worker)
            worker.start()
        try:
            with warnings_noted():
                yield
        finally:
            for worker in models.values():
                worker.drain()
            for worker in models.values():
                await asyncio.to_thread(worker.stop)

    app = FastAPI(
        title="fewstep",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.include_router(openai_api.router(models))
    app.include_router(a1111.router(models))
    _add_health(app, models, metrics)
    _add_page(app)
    _add_errors(app)
    # The last one added is the first to be asked.
    app.add_middleware(Guard, access=access, uploads=UPLOADS, answer=_error_response)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[*access.origins],
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client sends some of its own
            expose_headers=["Retry-After", "Retry-After-Ms"],
        )
    app.add_middleware(Measured, metrics=metrics)
    return app


def _add_health(app: FastAPI, models: Models, metrics: Metrics) -> None:
    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> JSONResponse:
        """Whether the process is of use; a lost device makes it none."""
        failed = {name: message_of(w.failure) for name, w in models.items() if w.failure}
        if failed:
            return JSONResponse({"status": "failed", "models": failed}, 503)
        return JSONResponse({"status": "ok", "version": __version__})

    @app.api_route("/ready", methods=["GET", "HEAD"])
    async def ready() -> JSONResponse:
        """Whether all models take requests."""
        opened = {name: worker.ready for name, worker in models.items()}
        status = 200 if all(opened.values()) else 503
        return JSONResponse({"ready": status == 200, "models": opened}, status)

    @app.get("/metrics")
    async def measured() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    """A route for every file of the page, so that no path of a request is looked up on the disk."""

    def route_of(file: Path) -> Callable[[], FileResponse]:
        return lambda: FileResponse(file, headers={"cache-control": "no-cache"})

    for file in sorted(PAGE.iterdir()) if PAGE.is_dir() else ():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        app.api_route(path, methods=["GET", "HEAD"], response_model=None)(route_of(file))


def _add_errors(app: FastAPI) -> None:
    async def foreseen(request: Request, error: Exception) -> Response:
        return _error_response(request.url.path, error)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=status_of(GoneError()))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = FewstepError(f"{request.method} {request.url.path}: {error.detail}")
        return _error_response(request.url.path, said, error.status_code)

    app.add_exception_handler(FewstepError, foreseen)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientDisconnect, gone)


def _error_response(path: str, error: Any, status: int | None = None) -> Response:
    """An error in the words of the API that a path is of."""
    if path.startswith("/sdapi/"):
        return a1111.error_response(error, status)
    return openai_api.error_response(error, status)
