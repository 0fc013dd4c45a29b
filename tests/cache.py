"""What tests make once and keep: folders below the user's cache, which may be deleted at any time.

A folder is made under a temporary name, with a lock around it, and then renamed, so any number of
processes may ask at once and none ever sees half of one. Of each kind those used last are kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_KEPT = 4
"""Folders of one kind: several checkouts, and several Pythons, may share the cache."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/fewstep`, below `~/.cache` where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fewstep"


def key_of(parts: Iterable[str | bytes]) -> str:
    """A name for what was made of these parts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """Fill the folder `target`, KIND-KEY, unless it exists; whoever else asks meanwhile waits."""
    kind = target.name.rpartition("-")[0]
    if not target.is_dir():
        with locked(target.with_name(kind)):
            if not target.is_dir():
                fill(target.parent, make, lambda fresh: target.name)
                remove_oldest(target.parent.glob(f"{kind}-{'?' * 16}"))
    os.utime(target)
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that belongs to a path; others wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fill(parent: Path, make: Callable[[Path], None], name: Callable[[Path], str]) -> Path:
    """Make a folder in `parent`, which gets its name once it is whole."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix="making-") as temporary:
        fresh = Path(temporary) / "new"
        fresh.mkdir()
        make(fresh)
        return fresh.rename(parent / name(fresh))


def remove_oldest(folders: Iterable[Path]) -> None:
    """Remove all but those that were used last."""
    for folder in sorted(folders, key=lambda each: -each.stat().st_mtime)[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)
