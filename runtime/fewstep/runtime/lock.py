"""One writer of a bundle at a time: a lock on its folder, across processes and machines.

The lock is the kernel's (``flock``), so it ends with its process, however that ends. Its file lies
in the folder, is no file of the bundle, and is removed with the lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fewstep.runtime.errors import FewstepWarning, OutputError

LOCK_NAME = ".fewstep-lock"

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_PATIENCE_S = 1.0  # before it is said who holds the lock
_MOST_SHOWN = 300  # characters of the holder's command


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder; wait for whoever holds it, and say who after a second.

    The same thread may take it again. Paths that lead to one folder are one lock. Where the file
    system has no locks, that is said and nothing is locked.

    Raises:
        OutputError: the folder cannot be written.
    """
    file = folder.resolve() / LOCK_NAME
    lock = FileLock(file, is_singleton=True, fallback_to_soft=False)
    if not _acquired(lock, folder, file):
        yield
        return
    nested, own = lock.lock_counter > 1, _inode(file)
    try:
        if not nested:
            with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
                file.write_text(_holder(), encoding="utf-8", errors="backslashreplace")
        yield
    finally:
        # Removed while it is held: those who wait see that it is gone, and make another. It may
        # be another's already, in a folder that took the place of this one.
        if not nested and _inode(file) == own:
            file.unlink(missing_ok=True)
        lock.release()


def _acquired(lock: FileLock, folder: Path, file: Path) -> bool:
    """Wait for the lock; ``False`` where there are no locks."""
    try:
        if not folder.is_dir():  # which filelock would make
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        try:
            lock.acquire(timeout=_PATIENCE_S)
        except Timeout:
            warnings.warn(f"waiting for {_who(file)} to finish with {folder}", FewstepWarning, 4)
            lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise OutputError(
                f"{folder} is not writable ({error.strerror}); copy the bundle to a folder that is"
            ) from error
        warnings.warn(
            f"{folder} is on a file system without locks: let one process at a time change it",
            FewstepWarning,
            4,
        )
        return False
    return True


def _inode(file: Path) -> int | None:
    try:
        return file.stat().st_ino
    except OSError:
        return None


def _holder() -> str:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:_MOST_SHOWN]
    return f"{command} (pid {os.getpid()} on {socket.gethostname()})"


def _who(file: Path) -> str:
    """The holder in its own words; its file is read only while somebody does hold the lock."""
    try:
        return file.read_text(encoding="utf-8", errors="replace") or "another process"
    except OSError:
        return "another process"
