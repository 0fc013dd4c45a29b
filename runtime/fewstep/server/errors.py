"""Why the server does not serve a request now; all else is in the runtime's tree."""

from __future__ import annotations

from collections.abc import Collection

from fewstep.runtime.errors import FewstepError, OutOfMemoryError, RequestError


class BusyError(FewstepError):
    """More is asked for than can be made in time; ``retry_after_s``: when there may be room."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(FewstepError):
    """A model that is not open yet, not any more, or whose device was lost."""


class TooLargeError(FewstepError):
    """A body that is larger than its route takes."""


class ForbiddenError(FewstepError):
    """Who asks may not: a foreign host or page."""


class UnauthorizedError(FewstepError):
    """No key, or a wrong one."""


class UnknownModelError(RequestError):
    """There is no such model here."""


class GoneError(FewstepError):
    """The client has gone, or interrupted the request."""


class FieldError(RequestError):
    """A field of a request that does not fit; ``field`` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def blamed(error: RequestError, fields: Collection[str]) -> RequestError:
    """The same with its field, where its message begins with the name of one, or "the" and that."""
    name = str(error).removeprefix("the ").partition(" ")[0]
    known = name in fields and not isinstance(error, FieldError)
    return FieldError(name, str(error)) if known else error


class UneditableError(FieldError):
    """The model has no encoder, which edits need."""


_STATUS: tuple[tuple[type[FewstepError], int], ...] = (
    (BusyError, 429),
    (UnavailableError, 503),
    (TooLargeError, 413),
    (ForbiddenError, 403),
    (UnauthorizedError, 401),
    (GoneError, 499),
    (UnknownModelError, 404),
    (RequestError, 400),
    (OutOfMemoryError, 503),
)


def status_of(error: BaseException) -> int:
    """The HTTP status of an error; 500 for what no request is to blame for."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def message_of(error: BaseException) -> str:
    """One line of an error; what was not foreseen says no more than its name."""
    if isinstance(error, FewstepError):
        return " ".join(str(error).split())
    return f"{type(error).__name__} (a defect of fewstep: the server's log shows where)"
