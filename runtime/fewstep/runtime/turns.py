"""Who may use a generator now: one thread at a time, in the process that opened it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from fewstep.runtime.errors import DeviceError


class Turns:
    """Lets threads in one after the other.

    Args:
        wait: a thread that comes meanwhile waits for its turn; else it is refused.
    """

    def __init__(self, *, wait: bool) -> None:
        self._wait = wait
        self._lock = threading.Lock()
        self._user: int | None = None
        self._process = os.getpid()

    @property
    def elsewhere(self) -> bool:
        """Whether this is a forked copy: threads and memory on devices are in another process."""
        return os.getpid() != self._process

    def require_process(self) -> None:
        """Raise ``DeviceError`` after a fork."""
        if self.elsewhere:
            raise DeviceError(
                f"this Generator was opened in another process ({self._process}), before a fork; "
                "open one in this process, after the fork"
            )

    @contextlib.contextmanager
    def turn(self, *, wait: bool = False) -> Iterator[None]:
        """Have the generator for the block.

        Args:
            wait: wait in any case.

        Raises:
            DeviceError: after a fork; the generator is in use by this thread, or by another and
                nobody waits.
        """
        self.require_process()
        if self._user == threading.get_ident():
            raise DeviceError(
                "this Generator is in the middle of a request of this thread, so it can neither "
                "serve another nor close; do that after the request"
            )
        if not self._lock.acquire(blocking=wait or self._wait):
            raise DeviceError(
                "this Generator is in use by another thread; open it with wait=True, or one "
                "Generator per thread"
            )
        self._user = threading.get_ident()
        try:
            yield
        finally:
            self._user = None
            self._lock.release()
