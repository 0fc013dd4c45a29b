"""The GPU's primary context: kept by the process, current in a thread while a device is open there.

The primary context is shared with PyTorch, ONNX Runtime and TensorRT, whose memory would go with
it; so the process retains it once and releases it at exit. pycuda keeps a stack of contexts per
thread and only pops the top, so devices that are closed in another order than they were opened
share one entry of it.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fewstep.runtime.devices.cuda_driver import load_bindings
from fewstep.runtime.errors import DeviceError, DeviceLostError


@dataclass
class _Retained:
    """The primary context of one GPU; ``lost``: the error after which nothing works in it."""

    context: Any
    thread: int
    lost: str = ""


_retained: dict[int, _Retained] = {}
_lock = threading.Lock()


class _Current:
    """The context on this thread's stack, and the number of devices that use it."""

    def __init__(self, context: Any, ordinal: int) -> None:
        self._context, self.ordinal, self.users = context, ordinal, 0
        context.push()

    def leave(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.pop()

    def __del__(self) -> None:
        # A thread that ends with an open device: pycuda aborts the process if it ends within a
        # context, and there is nobody left to tell.
        with contextlib.suppress(Exception):
            self.leave()


class _Here(threading.local):
    """What is current in this thread, and what is to be closed before it is left."""

    def __init__(self) -> None:
        self.current: _Current | None = None
        self.closers: list[weakref.WeakMethod[Callable[[], None]]] = []


_here = _Here()


def enter(device: Any, ordinal: int) -> Callable[[], None]:
    """Make the primary context current in this thread.

    Args:
        device: the pycuda device.
        ordinal: its number.

    Returns:
        What gives it up again, to be called once and in this thread.

    Raises:
        DeviceLostError: an error before took the context along.
        DeviceError: another GPU is open in this thread.
    """
    require_usable(ordinal)
    if _here.current is None:
        _here.current = _Current(_retain(device, ordinal), ordinal)
    elif _here.current.ordinal != ordinal:
        raise DeviceError(
            f"GPU {_here.current.ordinal} is open in this thread; open GPU {ordinal} in another one"
        )
    _here.current.users += 1
    return _leave


def mark_lost(ordinal: int, error: DeviceLostError) -> None:
    """Remember that nothing works in this GPU's context any more, in any thread."""
    held = _retained.get(ordinal)
    if held is not None:
        held.lost = held.lost or str(error)


def require_usable(ordinal: int) -> None:
    """Raise ``DeviceLostError`` if an error took this GPU's context along."""
    held = _retained.get(ordinal)
    if held is not None and held.lost:
        raise DeviceLostError(f"the GPU was lost before in this process: {held.lost}")


def before_leaving(close: Callable[[], None]) -> None:
    """Call a bound method at exit, if its object was not closed, before the context is left.

    Args:
        close: of an object that needs the context of this thread; calling it twice is fine.
    """
    alive = [each for each in _here.closers if each() is not None]
    _here.closers = [*alive, weakref.WeakMethod(close)]


def _retain(device: Any, ordinal: int) -> Any:
    with _lock:
        if ordinal not in _retained:
            context = device.retain_primary_context()
            _retained[ordinal] = _Retained(context, threading.get_ident())
        return _retained[ordinal].context


def _leave() -> None:
    current = _here.current
    assert current is not None
    current.users -= 1
    if current.users == 0:
        _here.current = None
        current.leave()


@atexit.register
def _leave_all() -> None:
    """Leave what the main thread never closed and release the contexts, while pycuda is there."""
    for reference in reversed(_here.closers):
        if (close := reference()) is not None:
            with contextlib.suppress(Exception):
                close()
    if _here.current is not None:
        with contextlib.suppress(Exception):
            _here.current.leave()
    while _retained:
        ordinal, held = _retained.popitem()
        with contextlib.suppress(Exception):
            _release(ordinal, held)


def _release(ordinal: int, held: _Retained) -> None:
    """pycuda releases a context in the thread that retained it, and makes it current for that."""
    held.context.detach()
    if held.thread == threading.get_ident():
        load_bindings().cuCtxPopCurrent()
    else:
        load_bindings().cuDevicePrimaryCtxRelease(ordinal)
