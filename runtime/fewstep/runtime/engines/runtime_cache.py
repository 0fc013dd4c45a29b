"""Kernels that TensorRT-RTX compiled for this GPU, in a file beside the engine.

Only TensorRT-RTX understands the file. One that does not fit the machine is refused by it; one that
cannot be read or written costs time at the next start and nothing else, which is said once.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from pathlib import Path
from typing import Any

from fewstep.runtime.errors import FewstepError, FewstepWarning
from fewstep.runtime.files import replacing

_MOST_BYTES = 1 << 30


class RuntimeCache:
    """What is compiled while an engine is open.

    Args:
        path: the file, which need not exist; ``None`` keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path if path is None or _usable(path) else None
        self._cache: Any = None
        self._loaded = 0

    def attach(self, config: Any) -> None:
        """Load what is in the file, and collect what is compiled from now on.

        Args:
            config: an ``IRuntimeConfig`` of TensorRT-RTX; a CUDA context is current.
        """
        if self._path is None:
            return
        self._cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):
            content = self._path.read_bytes()
            if self._cache.deserialize(content):
                self._loaded = len(content)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file if there is more than was loaded."""
        if self._cache is None or self._path is None:
            return
        content = self._serialized()
        if len(content) > self._loaded and _usable(self._path):
            try:
                with replacing(self._path) as temporary:
                    temporary.write_bytes(content)
            except FewstepError:
                _say_not_kept(self._path.parent)

    def _serialized(self) -> bytes:
        """Empty where TensorRT-RTX cannot, without a usable CUDA context for example."""
        try:
            found = self._cache.serialize()
        except (RuntimeError, TypeError):
            return b""
        return b"" if found is None else bytes(found)


@functools.cache  # so that a process says it once
def _say_not_kept(folder: Path) -> None:
    warnings.warn(
        f"what TensorRT-RTX compiled is not kept, since {folder} cannot be written: it compiles "
        "again at every start; copy the bundle to a folder that can be written",
        FewstepWarning,
        stacklevel=3,
    )


def _usable(path: Path) -> bool:
    """A file of a sensible size, or nothing yet; no link, and nothing that reading waits for."""
    if path.is_symlink() or not path.exists():
        return not path.is_symlink()
    return path.is_file() and path.stat().st_size <= _MOST_BYTES
