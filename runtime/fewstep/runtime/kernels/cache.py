"""Compiled CPU kernels on disk: kept between processes, and never in the way.

numba's own cache raises what it meets: an index cut short by a power failure ends a program with
``EOFError``, a full disk with ``OSError``. Here a kernel is one file, a checksum before its
contents. Whatever is not whole is removed and compiled again; whatever cannot be kept is compiled
in every process, said once. Files are written under another name and renamed, so processes may
share a folder.

A file's name is made of all that its contents depend on: the sources of all kernels, the versions
of numba and llvmlite, the types of the arguments and the processor.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import sys
import sysconfig
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewstep import __version__
from fewstep.runtime.errors import FewstepWarning

_CHECKSUM_BYTES = hashlib.sha256().digest_size
_REMEDY = "set NUMBA_CACHE_DIR to a folder that can be written"


class KernelCache:
    """What numba's dispatcher asks for compiled code, and gives it to keep.

    Args:
        function: the kernel.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"

    @property
    def cache_path(self) -> str | None:
        """The folder; ``None`` if there is none."""
        folder = cache_folder()
        return None if folder is None else str(folder)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The kernel for types of arguments, ``None`` if it has to be compiled."""
        from numba.core.compiler import CompileResult
        from numba.core.runtime.nrt import rtsys

        # What compiled code calls; `refresh` would bring all that compiling needs, which takes
        # longer than everything else here, and compiling does it itself.
        rtsys.initialize(target)
        path = self._path(signature, target.codegen())
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _say(f"compiled kernels cannot be read: {_reason(error, path)}; {_REMEDY}")
            return None
        body = content[_CHECKSUM_BYTES:]
        try:
            if content[:_CHECKSUM_BYTES] != hashlib.sha256(body).digest():
                raise ValueError("another checksum")
            rebuild: Any = CompileResult._rebuild
            return rebuild(target, *pickle.loads(body))
        except Exception:  # pickles of what is no kernel raise anything
            with contextlib.suppress(OSError):
                path.unlink()
            _say(f"compiled kernels in {path.parent} were damaged; they are compiled again")
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep a kernel, if that can be done."""
        from numba.core.serialize import dumps

        path = self._path(signature, compiled.codegen)
        if path is None:
            _say(f"compiled kernels are not kept, there is no folder for them; {_REMEDY}")
            return
        body: bytes = dumps(compiled._reduce())  # type: ignore[no-untyped-call]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, hashlib.sha256(body).digest() + body)
        except OSError as error:
            _say(f"compiled kernels are not kept: {_reason(error, path)}; {_REMEDY}")

    def enable(self) -> None:
        """Always on."""

    def disable(self) -> None:
        """Always on."""

    def flush(self) -> None:
        """Files of other sources are never read again."""

    def _path(self, signature: Any, codegen: Any) -> Path | None:
        folder = cache_folder()
        if folder is None:
            return None
        from numba.core.sigutils import normalize_signature

        # Types of arguments alone when a kernel is called, a text when it is compiled ahead.
        types, _ = normalize_signature(signature)  # type: ignore[no-untyped-call]
        depends = repr((str(types), codegen.magic_tuple(), _versions(), _sources()))
        digest = hashlib.sha256(depends.encode()).hexdigest()
        return folder / f"{self._name}-{digest[:24]}.kernel"


def cache_folder() -> Path | None:
    """Where compiled kernels are kept: ``NUMBA_CACHE_DIR``, or the user's folder for caches.

    ``None`` without a home folder. What begins with ``~`` is expanded or not used, never taken for
    a folder of that name.
    """
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        chosen = _absolute(given, Path.cwd)
    else:
        chosen = _absolute(os.environ.get("XDG_CACHE_HOME", "")) or _absolute("~/.cache")
    return None if chosen is None else chosen / "fewstep" / "cpu-kernels"


def _absolute(text: str, start: Callable[[], Path] | None = None) -> Path | None:
    """A folder's path; a relative one from a start, if that is allowed."""
    try:
        path = Path(text).expanduser()
        if not path.is_absolute() and text and start is not None and not text.startswith("~"):
            path = start() / path
    except (RuntimeError, OSError):  # no home, or the current folder was removed
        return None
    return path if path.is_absolute() else None


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _reason(error: OSError, path: Path) -> str:
    return f"{path.parent}: {error.strerror or error}"


@functools.cache  # so that a process says each thing once
def _say(text: str) -> None:
    warnings.warn(text, FewstepWarning, stacklevel=2)


@functools.cache
def _versions() -> tuple[str, ...]:
    import llvmlite  # type: ignore[import-untyped]
    import numba

    libraries = (numba.__version__, llvmlite.__version__)
    return (__version__, sys.version, sysconfig.get_platform(), *libraries)


@functools.cache
def _sources() -> str:
    """Hash of every kernel's source, since they call one another."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
