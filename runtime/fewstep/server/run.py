"""Listens, serves, and ends well.

SIGTERM and SIGINT: no new connection is taken, requests that wait are answered with 503, those that
run are finished if they take no longer than ``FINISH_S``, generators are closed in their threads. A
second one ends at once.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from fewstep.runtime.errors import RequestError
from fewstep.server.app import create_app
from fewstep.server.guard import Access
from fewstep.server.metrics import Metrics
from fewstep.server.models import Models, named_openings
from fewstep.server.worker import FINISH_S, Opening, Worker

_MOST_CONNECTIONS = 1_000


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        RequestError: the address is taken, or not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port, or --port 0"
        ) from error
    # Connections have it from here. Without it the body of an answer waits for the client to
    # acknowledge the headers, 40 ms: asyncio sets it only where a socket names its protocol.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address_of(host: str, listener: socket.socket) -> str:
    """The address of the page, for people."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


class Service:
    """Some models, served over HTTP.

    Args:
        openings: of the models.
        access: who may ask.
        max_wait_s: as of :class:`fewstep.server.worker.Worker`.
        ready: called with the models when all are open.
        ending: called when a signal came, before it waits for what runs.
        log: as of :class:`fewstep.server.metrics.Metrics`.
    """

    def __init__(
        self,
        openings: list[Opening],
        access: Access,
        *,
        max_wait_s: float | None = None,
        ready: Callable[[Models], None] = lambda models: None,
        ending: Callable[[], None] = lambda: None,
        log: Callable[[str, int], None] = lambda line, status: None,
    ) -> None:
        metrics = Metrics(log)
        self.models = Models(
            Worker(name, each, metrics, max_wait_s=max_wait_s, changed=self._changed)
            for name, each in named_openings(openings).items()
        )
        self._ready: Callable[[Models], None] | None = ready
        self._lock = threading.Lock()
        app = create_app(self.models, metrics, access)
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=round(FINISH_S),
        )
        self._server = _Server(config, self.models, ending)

    def run(self, listener: socket.socket) -> None:
        """Serve until a signal comes or a model fails.

        Raises:
            FewstepError: a model could not be opened, its device was lost, or what ran did not end
                in time.
        """
        self._server.run(sockets=[listener])
        failures = [each.failure for each in self.models.values() if each.failure]
        if failures:
            raise failures[0]

    def _changed(self, worker: Worker) -> None:
        """A worker's state changed, as its thread says."""
        if worker.failure is not None:
            self._server.should_exit = True
            return
        with self._lock:
            if self._ready is not None and all(each.ready for each in self.models.values()):
                self._ready(self.models)
                self._ready = None


class _Server(uvicorn.Server):
    """Of uvicorn, which tells workers of signals, and after which the process ends as usual."""

    def __init__(self, config: uvicorn.Config, models: Models, ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._models, self._ending = models, ending

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT while it serves."""
        before = {
            each: signal.signal(each, self.handle_exit) for each in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what waits, finish what runs."""
        if not any(worker.failure for worker in self._models.values()):
            self._ending()
        for worker in self._models.values():
            worker.drain()
        await super().shutdown(sockets)
