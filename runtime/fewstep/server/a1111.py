"""AUTOMATIC1111's API, as far as its clients need it to make images: ``/sdapi/v1``."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from fewstep.server.errors import message_of, status_of
from fewstep.server.models import Models
from fewstep.server.openai_api import error_headers

IMG2IMG = "/sdapi/v1/img2img"


def router(models: Models) -> APIRouter:
    return APIRouter()


def error_response(error: BaseException, status: int | None = None) -> JSONResponse:
    """An error as the web UI says it."""
    said = message_of(error)
    content = {"error": type(error).__name__, "detail": said, "body": "", "errors": said}
    return JSONResponse(content, status or status_of(error), error_headers(error))
