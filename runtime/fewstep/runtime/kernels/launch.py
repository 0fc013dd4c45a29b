"""How each CUDA kernel is launched: entry point, grid, block, arguments, and bytes moved.

The modules ``launch_….py`` are the places that know the ``.cu`` files' parameter lists; the
arguments given by name are those of the CPU kernels of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping

from fewstep.runtime.kernels import launch_diffusion, launch_rows, launch_tokens
from fewstep.runtime.kernels.launch_base import Argument, Launch
from fewstep.runtime.kernels.launch_rows import MAX_POSITIONS
from fewstep.runtime.kernels.launch_tokens import MAX_CODES, MAX_TOKENS

__all__ = ["ENTRIES", "MAX_CODES", "MAX_POSITIONS", "MAX_TOKENS", "Argument", "Launch", "launch_of"]

_LAUNCHES = {**launch_tokens.LAUNCHES, **launch_rows.LAUNCHES, **launch_diffusion.LAUNCHES}

_OF_TWO_TYPES = frozenset(("sample_tokens", "sample_top_k_top_p", "to_pixels"))

ENTRIES = tuple(
    f"{kernel}{suffix}"
    for kernel in sorted(_LAUNCHES)
    for suffix in (("_float", "_half") if kernel in _OF_TWO_TYPES else ("",))
)
"""Entry points of a cubin."""


def launch_of(kernel: str, arguments: Mapping[str, Argument]) -> Launch:
    """The launch of a kernel, arguments by name.

    Raises:
        DeviceError: sizes or types that the CUDA kernel does not take.
    """
    return _LAUNCHES[kernel](**arguments)
