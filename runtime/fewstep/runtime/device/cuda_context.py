"""The GPU's primary context, current in a thread as long as a device is open there.

pycuda keeps its own stack of contexts per thread and only pops the top, so devices that are closed
in another order than they were opened must share one entry of it.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Any


class _Held:
    """A current context and the number of devices that use it."""

    def __init__(self, context: Any) -> None:
        self._context, self.users = context, 0
        context.push()

    def leave(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.pop()
            context.detach()

    def __del__(self) -> None:
        # A thread that ends with an open device: pycuda aborts the process if it ends within a
        # context, and there is nobody left to tell.
        with contextlib.suppress(Exception):
            self.leave()


class _Here(threading.local):
    """What this thread holds, by number of the GPU."""

    def __init__(self) -> None:
        self.held: dict[int, _Held] = {}
        self.closers: list[weakref.WeakMethod[Callable[[], None]]] = []


_here = _Here()


def enter(device: Any, ordinal: int) -> Callable[[], None]:
    """Make the primary context current in this thread.

    Args:
        device: the pycuda device.
        ordinal: its number.

    Returns:
        What gives it up again, to be called once and in this thread; the last one leaves the
        context.
    """
    if ordinal not in _here.held:
        context = device.retain_primary_context()
        try:
            _here.held[ordinal] = _Held(context)
        except BaseException:
            context.detach()
            raise
    _here.held[ordinal].users += 1
    return lambda: _leave(ordinal)


def _leave(ordinal: int) -> None:
    held = _here.held[ordinal]
    held.users -= 1
    if held.users == 0:
        del _here.held[ordinal]
        held.leave()


def before_leaving(close: Callable[[], None]) -> None:
    """Call a bound method at exit, if its object was not closed, before the context is left.

    Args:
        close: of an object that needs the context of this thread; calling it twice is fine.
    """
    alive = [each for each in _here.closers if each() is not None]
    _here.closers = [*alive, weakref.WeakMethod(close)]


@atexit.register
def _leave_all() -> None:
    """Leave what the main thread never closed, before pycuda is unloaded."""
    for reference in reversed(_here.closers):
        if (close := reference()) is not None:
            with contextlib.suppress(Exception):
                close()
    _here.held.clear()
