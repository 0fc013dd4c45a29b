"""Between requests, which are on the event loop, and the threads of workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request

from fewstep.server.errors import FieldError, GoneError
from fewstep.server.job import Job, Made

Item = TypeVar("Item")

_MOST_VALUES = 20_000
"""Of a body of JSON, by its commas, colons and brackets. Pictures in base64 have none; what has
many more would hold up everything else while it is read, in any thread."""

_SMALL = 1 << 16
"""Bytes of a body that is read at once."""


async def json_of(request: Request) -> dict[str, Any]:
    """The object that the body of a request is.

    Raises:
        FieldError: it is none, or is said to be something else: what a form may send needs no leave
            of the page's browser.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise FieldError("body", "the header Content-Type must be application/json")
    body = await request.body()
    found = _parsed(body) if len(body) < _SMALL else await asyncio.to_thread(_parsed, body)
    if not isinstance(found, dict):
        raise FieldError("body", "the body must be a JSON object")
    return found


def _parsed(body: bytes) -> Any:
    """JSON of a body.

    Raises:
        FieldError: it is none, has too many values, a number that is not finite, or half of a
            surrogate pair, which is no text.
    """
    if sum(map(body.count, (b",", b":", b"[", b"{"))) > _MOST_VALUES:
        raise FieldError("body", f"the body has more than {_MOST_VALUES:,} values")
    try:
        found = json.loads(body.decode("utf-8-sig"), parse_float=_finite, parse_constant=_finite)
        if b"\\u" in body:
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FieldError("body", "the body must be JSON in UTF-8, of finite numbers") from error
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


async def made_for(request: Request, job: Job) -> Made:
    """The images of a job, unless its client goes first.

    Raises:
        GoneError: it has.
        FewstepError: what went wrong.
    """
    made = asyncio.wrap_future(job.future)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((made, gone), return_when=asyncio.FIRST_COMPLETED)
        if not made.done():
            raise GoneError("the client has gone")
        if made.cancelled():
            raise GoneError("the request was interrupted")
        return made.result()
    finally:
        gone.cancel()
        made.cancel()  # nobody asks how it ends
        job.leave()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def posting(queue: asyncio.Queue[Item]) -> Callable[[Item], None]:
    """A function for other threads that puts an item into a queue of the running loop; where that
    has ended, nobody waits for it."""
    loop = asyncio.get_running_loop()

    def post(item: Item) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, item)

    return post
