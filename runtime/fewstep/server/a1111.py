"""AUTOMATIC1111's API, as far as its clients need it to make images: ``/sdapi/v1``.

A client chooses the model by the option ``sd_model_checkpoint``, for all that come after. Errors
have the form of the web UI's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from fewstep.server.a1111_fields import edit_of, info_of, infotext, order_of, samplers_of
from fewstep.server.asking import json_of, made_for
from fewstep.server.errors import FieldError, GoneError, message_of, status_of
from fewstep.server.job import Job, Step
from fewstep.server.models import Models
from fewstep.server.openai_api import error_headers
from fewstep.server.order import Order
from fewstep.server.pictures import decoding, encoded
from fewstep.server.worker import Worker

IMG2IMG = "/sdapi/v1/img2img"

_PICTURES = ("init_images", "mask")  # that are held no longer than needed, and not answered


@dataclass
class _Session:
    """What all clients of this API share, as in the web UI: the model, and what is under way."""

    model: str
    jobs: dict[Job, _Progress] = field(default_factory=dict)


@dataclass
class _Progress:
    """How far a job is: steps that were taken, since ``started``."""

    started: float = field(default_factory=time.perf_counter)
    step: int = 0

    def __call__(self, step: Step) -> None:
        self.step = step.number + 1


def router(models: Models) -> APIRouter:
    """The routes, for these models."""
    routes, session = APIRouter(prefix="/sdapi/v1"), _Session(models.first.name)

    @routes.get("/options")
    async def options() -> dict[str, Any]:
        return {"sd_model_checkpoint": session.model, "samples_format": "png"}

    @routes.post("/options")
    async def set_options(request: Request) -> None:
        wanted = (await json_of(request)).get("sd_model_checkpoint")
        if wanted is not None:
            session.model = _named(models, wanted).name

    @routes.get("/sd-models")
    async def sd_models() -> list[dict[str, Any]]:
        nothing = dict.fromkeys(("hash", "sha256", "config"))
        return [{"title": n, "model_name": n, "filename": n, **nothing} for n in models]

    @routes.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        names = dict.fromkeys(name for each in models.values() for name in samplers_of(each))
        return [{"name": name, "aliases": [], "options": {}} for name in names]

    @routes.get("/progress")
    async def progress() -> dict[str, Any]:
        return _progress(session)

    @routes.post("/interrupt")
    async def interrupt() -> dict[str, Any]:
        for job in session.jobs:
            job.leave()
        return {}

    @routes.post("/txt2img")
    async def txt2img(request: Request) -> JSONResponse:
        given = await json_of(request)
        worker = _worker(models, session, given)
        return await _answer(request, session, worker, given, order_of(worker, given))

    @routes.post(IMG2IMG.removeprefix(routes.prefix))
    async def img2img(request: Request) -> JSONResponse:
        given = await json_of(request)
        worker = _worker(models, session, given)
        edit = await decoding(lambda: edit_of(worker, given))
        order = order_of(worker, given, edit.about)
        given = {name: value for name, value in given.items() if name not in _PICTURES}
        return await _answer(request, session, worker, given, order)

    return routes


def _worker(models: Models, session: _Session, given: Mapping[str, Any]) -> Worker:
    """The model of a request: its own, or that of the options."""
    override = given.get("override_settings")
    own = override.get("sd_model_checkpoint") if isinstance(override, Mapping) else None
    return _named(models, own or session.model)


def _named(models: Models, name: Any) -> Worker:
    if not isinstance(name, str):
        raise FieldError("sd_model_checkpoint", "sd_model_checkpoint must be the title of a model")
    return models.named(name)


async def _answer(
    request: Request, session: _Session, worker: Worker, given: Mapping[str, Any], order: Order
) -> JSONResponse:
    progress = _Progress()
    job = order.job(worker.model, worker.checks, progress)
    worker.submit(job)
    session.jobs[job] = progress
    try:
        made = await made_for(request, job)
    except GoneError:  # interrupted, which is no error: there are no images
        return JSONResponse({"images": [], "parameters": {}, "info": "{}"})
    finally:
        del session.jobs[job]
    texts = [infotext(worker, order, job, seed) for seed in made.seeds]

    def files() -> list[str]:
        return [encoded(each, text=t) for each, t in zip(made.pixels, texts, strict=True)]

    images = await asyncio.to_thread(files) if given.get("send_images", True) else []
    info = info_of(worker, order, job, made, texts)
    said = {"images": images, "parameters": given, "info": info}
    return await asyncio.to_thread(JSONResponse, said)


def _progress(session: _Session) -> dict[str, Any]:
    """How far the oldest job is."""
    job, progress = next(iter(session.jobs.items()), (None, None))
    steps, step, done, left = 0, 0, 0.0, 0.0
    if job is not None and progress is not None:
        steps, step = job.steps, progress.step
        done = step / steps
        took = time.perf_counter() - progress.started
        left = took / done - took if done else 0.0
    state = {
        "skipped": False,
        "interrupted": False,
        "job": "" if job is None else "scripts_txt2img",
        "job_count": len(session.jobs),
        "job_no": 0,
        "sampling_step": step,
        "sampling_steps": steps,
    }
    return {
        "progress": done,
        "eta_relative": left,
        "state": state,
        "current_image": None,
        "textinfo": None,
    }


def error_response(error: BaseException, status: int | None = None) -> JSONResponse:
    """An error as the web UI says it."""
    said = message_of(error)
    content = {"error": type(error).__name__, "detail": said, "body": "", "errors": said}
    return JSONResponse(content, status or status_of(error), error_headers(error))
