"""The GPU's primary context, current in a thread as long as a device is open there.

pycuda keeps its own stack of contexts per thread and only pops the top, so devices that are closed
in another order than they were opened must share one entry of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class _Held:
    context: Any
    users: int


_held: dict[tuple[int, int], _Held] = {}


def enter(device: Any, ordinal: int) -> Callable[[], None]:
    """Make the primary context current in this thread.

    Args:
        device: the pycuda device.
        ordinal: its number.

    Returns:
        What gives it up again, to be called once and in this thread; the last one leaves the
        context.
    """
    key = threading.get_ident(), ordinal
    if key not in _held:
        context = device.retain_primary_context()
        try:
            context.push()
        except BaseException:
            context.detach()
            raise
        _held[key] = _Held(context, 0)
    _held[key].users += 1
    return lambda: _leave(key)


def _leave(key: tuple[int, int]) -> None:
    held = _held[key]
    held.users -= 1
    if held.users == 0:
        del _held[key]
        held.context.pop()
        held.context.detach()
