"""OpenAI's images API: ``/v1/models``, ``/v1/images/generations`` and ``/v1/images/edits``, with
streams.

Events and fields are OpenAI's; answers have one more, ``fewstep``, with what this server knows.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
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
from fewstep.server.pictures import decoding, encoded
from fewstep.server.recorded import recorded
from fewstep.server.worker import Worker

EDITS = "/v1/images/edits"

_MOST_UNSENT = 32 << 20  # bytes of a stream's steps that wait to be sent
_MOST_CELLS = 128  # rows or columns that say what is undecided

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
                name = name.removesuffix("[]")
                if name in found:
                    most = "one picture is taken" if name == "image" else "give it once"
                    raise FieldError(name, f"{name} is given more than once: {most}")
                data = await value.read() if isinstance(value, UploadFile) else value
                found[name] = data
        worker = models.named(_name(fields))
        edit = await decoding(lambda: edit_of(worker, fields, files))
        files.clear()
        asked = replace(asked_of(worker, fields, edit.about, edit.box), notes=edit.notes)
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
        post, unsent = posting(updates), _Unsent()
        job = asked.order.job(worker.model, worker.checks, unsent.limiting(post))
        job.future.add_done_callback(lambda _: post(None))
        worker.submit(job)
        return _Stream(_events(worker, asked, job, updates, unsent, kind), job)
    job = asked.order.job(worker.model, worker.checks)
    made = await made_for(request, worker.submit(job))
    return await asyncio.to_thread(_response, worker, asked, job, made)


def _response(worker: Worker, asked: Asked, job: Job, made: Made) -> JSONResponse:
    return JSONResponse(
        {
            "created": int(time.time()),
            "background": "opaque",
            "output_format": asked.format,
            "size": _size(made.pixels),
            "data": [
                {"b64_json": _whole(worker, asked, job, made, index), "seed": seed}
                for index, seed in enumerate(made.seeds)
            ],
            "fewstep": _told(worker, asked, made),
        }
    )


class _Unsent:
    """Steps that wait to be sent. A client that reads too slowly misses some."""

    def __init__(self) -> None:
        self._bytes, self._lock = 0, threading.Lock()

    def limiting(self, post: Callable[[Step], None]) -> Callable[[Step], None]:
        """Posts steps that have pixels, where not too many wait."""

        def limited(step: Step) -> None:
            if self._takes(step):
                post(step)

        return limited

    def sent(self, step: Step) -> None:
        """A step waits no longer."""
        with self._lock:
            self._bytes -= _bytes(step)

    def _takes(self, step: Step) -> bool:
        if step.pixels is None:
            return False
        with self._lock:
            room = not self._bytes or self._bytes + _bytes(step) <= _MOST_UNSENT
            self._bytes += _bytes(step) if room else 0
        return room


def _bytes(step: Step) -> int:
    return 0 if step.pixels is None else step.pixels.nbytes + step.undecided.nbytes


class _Stream(StreamingResponse):
    """Events of a job; both end with the connection."""

    def __init__(self, events: AsyncGenerator[bytes, None], job: Job) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )
        self._events, self._job = events, job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.leave()  # the events may not even have begun
            await self._events.aclose()


async def _events(
    worker: Worker,
    asked: Asked,
    job: Job,
    updates: asyncio.Queue[Step | None],
    unsent: _Unsent,
    kind: str,
) -> AsyncGenerator[bytes, None]:
    shared = {
        "created_at": int(time.time()),
        "output_format": asked.format,
        "quality": "auto",
        "background": "opaque",
    }
    shown = dict.fromkeys(range(job.count), 0)
    try:
        while (step := await updates.get()) is not None:
            assert step.pixels is not None
            for row in range(len(step.pixels)):
                index = step.first + row
                about = {**shared, "partial_image_index": shown[index]}
                shown[index] += 1
                yield await asyncio.to_thread(_partial, asked, job, step, row, about, kind)
            unsent.sent(step)
        made = job.future.result()
        for index in range(len(made.pixels)):
            yield await asyncio.to_thread(_completed, worker, asked, job, made, index, shared, kind)
    except Exception as error:  # the status was sent: a stream says it in an event
        yield _event("error", {"error": error_object(error)})
    finally:
        while not updates.empty():  # an error may keep all this until the next collection
            updates.get_nowait()


def _partial(
    asked: Asked, job: Job, step: Step, row: int, about: Mapping[str, Any], kind: str
) -> bytes:
    """The event of an image after a step, of which it is the one at ``row``."""
    assert step.pixels is not None
    names, numbers = step.parameters or ((), None)
    own = None if numbers is None else (names, numbers[:, row : row + 1])
    told = {
        "index": step.first + row,
        "step": step.number,
        "steps": job.steps,
        "caption": step.caption,
        **_parameters(own),
        "undecided": _thinned(step.undecided[row]).astype(int).tolist(),
    }
    image, size = _encoded(step.pixels[row], asked), _size(step.pixels)
    return _event(
        f"{kind}.partial_image", {"b64_json": image, "size": size, **about, "fewstep": told}
    )


def _completed(
    worker: Worker,
    asked: Asked,
    job: Job,
    made: Made,
    index: int,
    about: Mapping[str, Any],
    kind: str,
) -> bytes:
    """The last event of an image."""
    told = {"index": index, "seed": made.seeds[index], **_told(worker, asked, made)}
    image, size = _whole(worker, asked, job, made, index), _size(made.pixels)
    return _event(f"{kind}.completed", {"b64_json": image, "size": size, **about, "fewstep": told})


def _thinned(undecided: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """``[rows, columns]``, each at most ``_MOST_CELLS``: true where any cell of several is."""
    step = -(-max(undecided.shape) // _MOST_CELLS)
    if step == 1:
        return undecided
    rows, columns = (np.arange(0, length, step) for length in undecided.shape)
    found: npt.NDArray[np.bool_] = np.logical_or.reduceat(undecided, rows, 0)
    return np.logical_or.reduceat(found, columns, 1)


def _event(kind: str, data: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    text = json.dumps({"type": kind, **data}, separators=(",", ":"), allow_nan=False)
    return f"event: {kind}\ndata: {text}\n\n".encode()


def _encoded(pixels: Any, asked: Asked) -> str:
    return encoded(pixels, asked.format, quality=asked.quality)


def _whole(worker: Worker, asked: Asked, job: Job, made: Made, index: int) -> str:
    """An image that is done, which says how it was made."""
    record = recorded(worker, job, made.seeds[index])
    return encoded(made.pixels[index], asked.format, quality=asked.quality, record=record)


def _size(pixels: npt.NDArray[np.uint8]) -> str:
    """The size of images ``[B, H, W, 3]``, as OpenAI writes it."""
    return f"{pixels.shape[2]}x{pixels.shape[1]}"


def _told(worker: Worker, asked: Asked, made: Made) -> dict[str, Any]:
    """What only this server knows of images."""
    return {
        "model": worker.name,
        "steps": made.steps,
        "timings_ms": {stage: round(ms, 3) for stage, ms in made.timings_ms.items()},
        "batch": made.batch,
        "notes": [*asked.notes, *made.notes],
        **({} if asked.box is None else {"box": list(asked.box)}),
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
