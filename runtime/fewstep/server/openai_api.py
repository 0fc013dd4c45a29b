"""OpenAI's images API: ``/v1/models``, ``/v1/images/generations`` and ``/v1/images/edits``, with
streams.

Events and fields are OpenAI's; answers have one more, ``fewstep``, with what this server knows.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile

from fewstep.runtime.errors import brief
from fewstep.server.asking import json_of, made_for, posting
from fewstep.server.edits import edit_of
from fewstep.server.errors import (
    BusyError,
    FieldError,
    UnauthorizedError,
    UneditableError,
    UnknownModelError,
    message_of,
    status_of,
)
from fewstep.server.job import Job, Made, Parameters, Step
from fewstep.server.models import Models, described
from fewstep.server.openai_fields import Asked, asked_of
from fewstep.server.pictures import encoded
from fewstep.server.worker import Worker

EDITS = "/v1/images/edits"

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (UnknownModelError, "model_not_found"),
    (UnauthorizedError, "invalid_api_key"),
    (BusyError, "rate_limit_exceeded"),
    (UneditableError, "model_not_editable"),
)


def router(models: Models) -> APIRouter:
    """The routes, for these models."""
    routes = APIRouter()

    @routes.get("/v1/models")
    async def list_models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [*map(described, models.values())]})

    @routes.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> JSONResponse:
        return JSONResponse(described(models.named(name)))

    @routes.post("/v1/images/generations")
    async def generations(request: Request) -> Response:
        fields = await json_of(request)
        worker = models.named(_name(fields))
        return await _answer(request, worker, asked_of(worker, fields), "image_generation")

    @routes.post(EDITS)
    async def edits(request: Request) -> Response:
        async with request.form(max_files=4, max_fields=100) as form:
            fields: dict[str, Any] = {}
            files: dict[str, bytes] = {}
            for name, value in form.multi_items():
                found: dict[str, Any] = files if isinstance(value, UploadFile) else fields
                if name.removesuffix("[]") in found:
                    raise FieldError(name, f"{name} is given more than once")
                data = await value.read() if isinstance(value, UploadFile) else value
                found[name.removesuffix("[]")] = data
        worker = models.named(_name(fields))
        about = await asyncio.to_thread(edit_of, worker, fields, files)
        asked = asked_of(worker, fields, about)
        return await _answer(request, worker, asked, "image_edit")

    return routes


def _name(fields: Mapping[str, Any]) -> str | None:
    name = fields.get("model")
    if name is not None and not isinstance(name, str):
        raise FieldError("model", f"model must be the name of a model, got {brief(name)}")
    return name


async def _answer(request: Request, worker: Worker, asked: Asked, kind: str) -> Response:
    if asked.stream:
        updates = asyncio.Queue[Step | None]()
        post = posting(updates)
        job = asked.order.job(worker.model, worker.steps_of, post)
        job.future.add_done_callback(lambda _: post(None))
        worker.submit(job)
        events = _events(worker, asked, job, updates, kind)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )
    job = asked.order.job(worker.model, worker.steps_of)
    made = await made_for(request, worker.submit(job))
    images = await asyncio.to_thread(lambda: [_encoded(each, asked) for each in made.pixels])
    return JSONResponse(
        {
            "created": int(time.time()),
            "background": "opaque",
            "output_format": asked.format,
            "size": _size(made.pixels),
            "data": [
                {"b64_json": image, "seed": seed}
                for image, seed in zip(images, made.seeds, strict=True)
            ],
            "fewstep": _told(worker, made),
        }
    )


async def _events(
    worker: Worker, asked: Asked, job: Job, updates: asyncio.Queue[Step | None], kind: str
) -> AsyncIterator[bytes]:
    shared = {
        "created_at": int(time.time()),
        "output_format": asked.format,
        "quality": "auto",
        "background": "opaque",
    }
    shown = dict.fromkeys(range(job.count), 0)
    try:
        while (step := await updates.get()) is not None:
            if step.pixels is None:
                continue
            said = {
                "step": step.number,
                "steps": job.steps,
                "caption": step.caption,
                **_parameters(step.parameters),
            }
            for row, pixels in enumerate(step.pixels):
                index = step.first + row
                event = {
                    "b64_json": await asyncio.to_thread(_encoded, pixels, asked),
                    "partial_image_index": shown[index],
                    "size": _size(step.pixels),
                    **shared,
                    "fewstep": {
                        "index": index,
                        **said,
                        "undecided": step.undecided[row].astype(int).tolist(),
                    },
                }
                shown[index] += 1
                yield _event(f"{kind}.partial_image", event)
        made = job.future.result()
        size = _size(made.pixels)
        for index, (pixels, seed) in enumerate(zip(made.pixels, made.seeds, strict=True)):
            image = await asyncio.to_thread(_encoded, pixels, asked)
            told = {"index": index, "seed": seed, **_told(worker, made)}
            event = {"b64_json": image, "size": size, **shared, "fewstep": told}
            yield _event(f"{kind}.completed", event)
    except Exception as error:  # the status was sent: a stream says it in an event
        yield _event("error", {"error": error_object(error)})
    finally:
        job.leave()


def _event(kind: str, data: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    text = json.dumps({"type": kind, **data}, separators=(",", ":"), allow_nan=False)
    return f"event: {kind}\ndata: {text}\n\n".encode()


def _encoded(pixels: Any, asked: Asked) -> str:
    return encoded(pixels, asked.format, quality=asked.quality)


def _size(pixels: npt.NDArray[np.uint8]) -> str:
    """The size of images ``[B, H, W, 3]``, as OpenAI writes it."""
    return f"{pixels.shape[2]}x{pixels.shape[1]}"


def _told(worker: Worker, made: Made) -> dict[str, Any]:
    """What only this server knows of images."""
    return {
        "model": worker.name,
        "steps": made.steps,
        "timings_ms": {stage: round(ms, 3) for stage, ms in made.timings_ms.items()},
        "batch": made.batch,
        "notes": list(made.notes),
        **_parameters(made.parameters),
    }


def _parameters(parameters: Parameters | None) -> dict[str, Any]:
    """Parameters as JSON has them: by step, image and name."""
    names, numbers = parameters or ((), None)
    rows = [] if numbers is None else numbers.astype("float64").round(6).tolist()
    return {"parameter_names": list(names), "parameters": rows}


# Errors


def error_response(error: BaseException, status: int | None = None) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    status = status_of(error) if status is None else status
    return JSONResponse({"error": error_object(error, status)}, status, error_headers(error))


def error_object(error: BaseException, status: int | None = None) -> dict[str, Any]:
    """OpenAI's description of an error."""
    status = status_of(error) if status is None else status
    kind = "rate_limit_error" if status == 429 else _KINDS.get(status)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    return {
        "message": message_of(error),
        "type": kind or ("server_error" if status >= 500 else "invalid_request_error"),
        "param": getattr(error, "field", None),
        "code": code,
    }


def error_headers(error: BaseException) -> dict[str, str]:
    """When to try again, and how to say who one is."""
    if isinstance(error, BusyError):
        seconds = error.retry_after_s
        return {
            "retry-after": str(math.ceil(seconds)),
            "retry-after-ms": str(math.ceil(seconds * 1e3)),
        }
    if isinstance(error, UnauthorizedError):
        return {"www-authenticate": 'Bearer realm="fewstep", Basic realm="fewstep"'}
    return {"retry-after": "1"} if status_of(error) == 503 else {}
