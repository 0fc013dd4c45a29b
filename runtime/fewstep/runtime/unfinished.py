"""What is not finished yet: temporary files and folders, and what becomes of them.

Each has a hidden name with :data:`MARK` and a lock (``flock``), which ends with its process however
that ends: so what a killed process left can be told from what is being written, and :func:`sweep`
removes it. Where the file system has no locks it stays. Ctrl-C may come between any two lines:
:func:`remove_unfinished` removes what it left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from pathlib import Path

MARK = ".fewstep-unfinished"
STEM = 40  # characters of a name that its temporary one repeats: names have an end
OLD = "-old"

# Of this process: temporary files, and temporary folders with the path whose place they take.
_UNFINISHED: dict[Path, Path | None] = {}


def temporary_file(path: Path) -> tuple[Path, int]:
    """A new file beside ``path``, or elsewhere if only ``path`` itself may be written.

    Returns:
        Its path, and the descriptor that holds the lock on it.
    """
    name = f".{path.stem[:STEM]}-{secrets.token_hex(8)}{MARK}{path.suffix}"
    try:
        require_open(path)
        folder = Path(tempfile.gettempdir()) if is_special(path) else path.parent
        temporary = folder / name
        held = new_file(temporary)
    except OSError:
        if path.is_symlink() or not os.access(path, os.W_OK):
            raise
        temporary = Path(tempfile.gettempdir()) / name
        held = new_file(temporary)
    with contextlib.suppress(OSError):  # no locks here
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return temporary, held


def new_file(temporary: Path) -> int:
    """Make a file that did not exist, known as unfinished; its descriptor."""
    _UNFINISHED[temporary] = None
    try:
        return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except (OSError, ValueError):
        del _UNFINISHED[temporary]
        raise


def temporary_folder(path: Path) -> tuple[Path, int]:
    """As :func:`temporary_file`, for a folder; inside of ``path`` if not beside it."""
    while True:
        name = f".{path.name[:STEM]}-{secrets.token_hex(8)}{MARK}"
        try:
            temporary = _new_folder(path.parent / name, path)
        except PermissionError:
            if not path.is_dir():
                raise
            temporary = _new_folder(path / name, path)
        held = locked_folder(temporary)
        if temporary.exists():  # not taken for a leftover before it was locked
            return temporary, held
        clear(temporary)
        os.close(held)


def _new_folder(temporary: Path, path: Path) -> Path:
    _UNFINISHED[temporary] = path
    try:
        temporary.mkdir(0o700)
    except (OSError, ValueError):
        del _UNFINISHED[temporary]
        raise
    return temporary


def sweep(folder: Path) -> None:
    """Remove what killed processes left unfinished in a folder; what is being written stays."""
    for left in folder.glob(f".*{MARK}*"):
        if not left.name.endswith(OLD):
            remove_if_dead(left)


def remove_unfinished() -> None:
    """Remove what an interruption left of this process's writing; an old folder is put back."""
    for temporary in list(_UNFINISHED):
        with contextlib.suppress(OSError):
            clear(temporary)


def clear(temporary: Path) -> None:
    """Remove a temporary path unless it was renamed, and an old folder unless it is put back.

    Raises:
        OSError: it cannot be removed.
    """
    path = _UNFINISHED.get(temporary)
    if path is None:
        temporary.unlink(missing_ok=True)
    else:
        old, moved = old_of(temporary), not temporary.exists()
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        elif moved:
            shutil.rmtree(old, ignore_errors=True)
    _UNFINISHED.pop(temporary, None)


def remove_if_dead(left: Path) -> None:
    """Remove what no living process holds the lock on."""
    with contextlib.suppress(OSError):
        held = os.open(left, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()
        finally:
            os.close(held)


def locked_folder(folder: Path) -> int:
    """The descriptor that holds the lock on a folder, until it is closed."""
    held = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # no locks here
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return held


def old_of(new: Path) -> Path:
    """Where a folder goes whose place ``new`` takes."""
    return new.with_name(new.name + OLD)


def is_special(path: Path) -> bool:
    """Whether a pipe or device is there, which is written to and never replaced."""
    return path.exists() and not path.is_file()


def require_open(path: Path) -> None:
    """Raise ``PermissionError`` if a pipe or device is there that may not be written."""
    if is_special(path) and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
