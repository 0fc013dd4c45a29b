"""Writing without half-written results, and hashing.

Results are made beside their place, in what ``unfinished.py`` provides, and renamed.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from fewstep.runtime.errors import FewstepWarning, OutputError
from fewstep.runtime.lock import LOCK_NAME, locked
from fewstep.runtime.unfinished import (
    MARK,
    OLD,
    STEM,
    clear,
    is_special,
    locked_folder,
    new_file,
    old_of,
    remove_if_dead,
    require_open,
    sweep,
    temporary_file,
    temporary_folder,
)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def require_writable_bundle(folder: Path) -> None:
    """Raise ``OutputError`` unless files can be made in a bundle's folder."""
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} is not writable; copy the bundle to a folder that is")


def require_writable(path: Path) -> None:
    """Raise unless a file can be written at ``path``: to be asked before any work.

    It is tried, and nothing of it stays: an absent file and its absent folders are made and
    removed again; an existing file keeps contents and times. What killed processes left in the
    folder is removed.

    Raises:
        OutputError: a folder is there, or the file cannot be made or changed.
    """
    made: list[Path] = []
    try:
        _require_no_folder(path)
        made = _make_folders(path.parent)
        require_open(path)
        if path.is_file():
            os.close(os.open(path, os.O_WRONLY))
        elif is_special(path):
            pass  # to open a pipe would wait for who reads it
        elif path.is_symlink():
            tempfile.TemporaryFile(dir=path.parent).close()
        else:
            os.close(new_file(path))
            clear(path)
        sweep(path.parent)
    except (OSError, ValueError) as error:
        raise _not_written(path, error) from error
    finally:
        _remove_empty(made)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; put what is there at ``path`` if the block succeeds.

    It lies beside ``path`` and is renamed. Where that is not allowed, as with a file that is a
    mount of its own, an existing file is written over, with a warning; so are pipes and devices.

    Raises:
        OutputError: the folder is absent or not writable, or the disk is full. Where the block had
            succeeded, what it wrote is kept, and the message says where.
    """
    made: list[Path] = []
    try:
        _require_no_folder(path)
        made = _make_folders(path.parent)
        temporary, held = temporary_file(path)
    except OSError as error:
        _remove_empty(made)
        raise _not_written(path, error) from error
    finished = False
    try:
        yield temporary
        finished = True
        _put(temporary, path)
    except OSError as error:
        raise _not_written(path, error, _kept(temporary) if finished else None) from error
    finally:
        clear(temporary)
        os.close(held)
        _remove_empty(made)


@contextlib.contextmanager
def replacing_folder(path: Path, *, overwrite: bool = False, marker: str = "") -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; rename it there if the block succeeds.

    Nothing appears at ``path`` if the block fails or is interrupted. An existing folder is
    replaced only with ``overwrite``, only if it is empty or holds a file named ``marker``, and
    only once the new one is whole and nobody holds the lock on the old one. The contents of a
    folder that cannot be renamed, such as a mount, are replaced.

    Raises:
        OutputError: ``path`` exists and may not be replaced, its parent is not writable, or the
            disk is full. Where the block had succeeded, the folder is kept, and the message says
            where.
    """
    made: list[Path] = []
    try:
        _put_back(path)
        _require_replaceable(path, overwrite, marker)
        made = _make_folders(path.parent)
        sweep(path.parent)
        temporary, held = temporary_folder(path)
    except OSError as error:
        _remove_empty(made)
        raise _not_written(path, error) from error
    finished = False
    try:
        yield temporary
        finished = True
        with contextlib.suppress(OSError):  # not every file system has modes
            temporary.chmod(0o777 & ~_umask())
        with locked(path) if (path / marker).is_file() else contextlib.nullcontext():
            _require_replaceable(path, overwrite, marker)  # it may have come about meanwhile
            _swap(temporary, path)
    except OSError as error:
        raise _not_written(path, error, _kept(temporary) if finished else None) from error
    finally:
        clear(temporary)
        os.close(held)
        _remove_empty(made)


def _put(temporary: Path, path: Path) -> None:
    """Put a finished file in the place of ``path``."""
    with contextlib.suppress(OSError):  # not every file system has modes
        temporary.chmod(0o666 & ~_umask())
    if is_special(path):
        _write_over(temporary, path)
        return
    try:
        temporary.replace(path)
    except OSError as error:
        if path.is_symlink() or not path.is_file():
            raise
        _write_over(temporary, path)
        reason = error.strerror or error
        warnings.warn(
            f"{path} cannot be replaced ({reason}), so it was written in place: an interruption "
            "there would have left half of it",
            FewstepWarning,
            4,
        )


def _write_over(source: Path, path: Path) -> None:
    with source.open("rb") as old, path.open("wb") as new:
        shutil.copyfileobj(old, new)


def _kept(temporary: Path) -> Path | None:
    """Give what is finished but could not be put in its place a name of its own."""
    kept = temporary.with_name(temporary.name.removeprefix(".").replace(MARK, ""))
    try:
        return temporary.replace(kept)
    except OSError:
        return None


def _require_no_folder(path: Path) -> None:
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file")


def _make_folders(path: Path) -> list[Path]:
    """Make a folder and its parents; return those that were not there, innermost first."""
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        _remove_empty(absent)
        raise
    return absent


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders made for a result that did not come about."""
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty: the result is there
            folder.rmdir()


def _require_replaceable(path: Path, overwrite: bool, marker: str) -> None:
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; remove it or pass --force to replace it")
    if path.exists() and not _replaceable(path, marker):
        kind = f"a folder with {marker}" if marker else "an empty folder"
        raise OutputError(f"{path} is not {kind}, so it is not replaced; choose another place")
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"{path} is not writable, so it is not replaced; choose another place")


def _replaceable(path: Path, marker: str) -> bool:
    if not path.is_dir() or path.is_symlink():
        return False
    left = (each for each in path.iterdir() if MARK not in each.name)
    return not any(left) or bool(marker and (path / marker).is_file())


def _swap(new: Path, path: Path) -> None:
    """Put ``new`` in the place of ``path``; on failure the old folder is back in place."""
    old = old_of(new)
    if not path.exists():
        new.rename(path)
        return
    held = locked_folder(path)
    try:
        try:
            path.rename(old)
        except OSError:  # a mount, or the parent's folder may not be changed
            old.mkdir()
            _exchange(new, path, old)
        else:
            _rename_or_restore(new, path, old)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(held)


def _rename_or_restore(new: Path, path: Path, old: Path) -> None:
    try:
        new.rename(path)
    except BaseException:
        if not path.exists():
            old.rename(path)
        raise


def _exchange(new: Path, path: Path, old: Path) -> None:
    """Put the contents of ``new`` into ``path``, and those that are there into ``old``."""
    try:
        _move_contents(path, old)
        try:
            _move_contents(new, path)
        except BaseException:
            _move_contents(path, new)
            raise
    except BaseException:
        _move_contents(old, path)
        old.rmdir()
        raise


def _move_contents(source: Path, target: Path) -> None:
    for each in list(source.iterdir()):
        if MARK not in each.name and each.name != LOCK_NAME:
            shutil.move(each, target / each.name)


def _put_back(path: Path) -> None:
    """Undo an exchange of folders that a killed process had begun, or end it."""
    pattern = f".{glob.escape(path.name[:STEM])}-*{MARK}{OLD}"
    for old in path.parent.glob(pattern):
        if path.exists():
            remove_if_dead(old)
        else:
            old.rename(path)


def _not_written(path: Path, error: OSError | ValueError, kept: Path | None = None) -> OutputError:
    where = f"; what was made is kept as {kept}" if kept is not None else ""
    if isinstance(error, OutputError):
        return OutputError(f"{error}{where}")
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, FileExistsError):  # a folder was to be made
        reason = f"{error.filename} is a file, not a folder"
    return OutputError(f"cannot write {path}: {reason}; choose a writable place{where}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
