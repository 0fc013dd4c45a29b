"""Who may ask, and how much: an ASGI layer before everything else.

On a loopback address nobody else is reached, so a request must name such a host (a page of another
site may have its own name lead here: DNS rebinding). Elsewhere it must have the key. A page of
another origin is refused wherever it wants to change or make something, unless it is named.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import ipaddress
import sys
import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fewstep.runtime.errors import FewstepError, RequestError
from fewstep.server.errors import ForbiddenError, TooLargeError, UnauthorizedError

LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))

MAX_BODY = 1 << 20
"""Bytes of a request's body."""

MAX_UPLOAD = 32 << 20
"""The same on routes that take pictures."""

ANY = "*"
"""In the place of origins: every page."""

_DIGITS = 18  # of a length that is read
_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
_APIS = ("/v1/", "/sdapi/", "/metrics")

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every answer."""


@dataclass(frozen=True)
class Access:
    """Who may ask.

    ``host``: that the server listens on. ``key``: that requests must have, if any. ``origins``: of
    other pages that may ask, or ``*``.

    Raises:
        RequestError: an empty key, or what is no origin.
    """

    host: str = "127.0.0.1"
    key: str | None = None
    origins: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.key == "":
            raise RequestError("the key is empty: give one that others cannot guess, or none")
        for origin in self.origins:
            scheme, _, rest = origin.partition("://")
            host, written = _parts(origin)
            whole = scheme in ("http", "https") and host and rest == written and "@" not in rest
            if origin != ANY and not whole:
                raise RequestError(
                    f"the origin of a page is as https://example.org or http://example.org:8080, "
                    f"or {ANY} for all; got {origin!r}"
                )

    @property
    def is_local(self) -> bool:
        """Whether only this machine is listened to."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host in LOOPBACK

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Refuse who may not ask; ``headers`` by their names in lower case.

        Raises:
            ForbiddenError: a foreign host or origin.
            UnauthorizedError: no key, or a wrong one.
        """
        host = headers.get("host", "")
        name = _parts(f"//{host}")[0]
        if self.is_local and name not in LOOPBACK and name != self.host:
            raise ForbiddenError(
                f"the host {name or 'of the request'} is not this machine's; ask for "
                f"{self.host}, or listen on an address with --host and --api-key"
            )
        origin = headers.get("origin")
        named = ANY in self.origins or origin in self.origins
        foreign = origin is not None and not named and _parts(origin)[1] != host
        if foreign and method not in _SAFE:
            raise ForbiddenError(
                f"pages of {origin} may not ask; let them with --cors-origin {origin}"
            )
        if self.key is not None and path.startswith(_APIS) and method != "OPTIONS":
            given = _key_of(headers.get("authorization", ""))
            if not hmac.compare_digest(given, self.key.encode()):
                raise UnauthorizedError(
                    "the key is not this server's"
                    if given
                    else "this server needs its key: Authorization: Bearer KEY, or as the password "
                    "of Basic authentication"
                )


def _parts(address: str) -> tuple[str, str]:
    """The host of an address, and the host as it is written, with its port; empty if none."""
    try:
        found = urlsplit(address)
        return found.hostname or "", found.netloc
    except ValueError:
        return "", ""


def _key_of(authorization: str) -> bytes:
    """The key of a header: OpenAI's clients send a bearer, those of AUTOMATIC1111 a password."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):  # no base64, or no ASCII
            return base64.b64decode(value, validate=True).partition(b":")[2]
    return b""


class Guard:
    """ASGI: asks ``access`` of every request, and limits its body.

    Args:
        app: that is guarded.
        access: who may ask.
        uploads: paths that take pictures.
        answer: makes an ASGI app of the answer to a refused request, from its path and the error.
    """

    def __init__(self, app: Any, access: Access, uploads: Collection[str], answer: Any) -> None:
        self._app, self._access = app, access
        self._uploads, self._answer = uploads, answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] == "websocket":  # nothing here is one
            await send({"type": "websocket.close"})
        if scope["type"] != "http":
            return
        path = scope["path"]
        most = MAX_UPLOAD if path in self._uploads else MAX_BODY
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        app, taken, started = self._app, 0, False
        try:
            self._access.check(scope["method"], path, headers)
            length = headers.get("content-length", "0")
            if not length.isdecimal() or len(length) > _DIGITS or int(length) > most:
                raise _too_large(most)
        except FewstepError as error:
            app = self._answer(path, error)

        async def received() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise _too_large(most)
            return message

        async def sent(message: Any) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            await app(scope, received, sent)
        except Exception as error:  # a defect; here the answer still gets all headers
            if started:
                raise
            traceback.print_exception(error, file=sys.stderr)
            await self._answer(path, error)(scope, received, sent)


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the body of a request may have at most {most >> 20} MiB here")
