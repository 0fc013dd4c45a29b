"""Writing without half-written results, and hashing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fewstep.runtime.errors import OutputError


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it there if the block succeeds.

    Raises:
        OutputError: the folder is absent or not writable, or the disk is full.
    """
    made: list[Path] = []
    try:
        made = _make_folders(path.parent)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
    except OSError as error:
        raise _not_written(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        _remove_empty(made)


@contextlib.contextmanager
def replacing_folder(path: Path, *, overwrite: bool = False, marker: str = "") -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; rename it there if the block succeeds.

    Nothing appears at ``path`` if the block fails or is interrupted. An existing folder is
    replaced only with ``overwrite``, only if it is empty or holds a file named ``marker``, and
    only once the new one is whole.

    Raises:
        OutputError: ``path`` exists and may not be replaced, its parent is not writable, or the
            disk is full.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; remove it or pass --force to replace it")
    if path.exists() and not _replaceable(path, marker):
        kind = f"a folder with {marker}" if marker else "an empty folder"
        raise OutputError(f"{path} is not {kind}, so it is not replaced; choose another place")
    made: list[Path] = []
    try:
        made = _make_folders(path.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        _swap(temporary, path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)


def _make_folders(path: Path) -> list[Path]:
    """Make a folder and its parents; return those that were not there, innermost first."""
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return absent


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders made for a result that did not come about."""
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty: the result is there
            folder.rmdir()


def _replaceable(path: Path, marker: str) -> bool:
    if not path.is_dir() or path.is_symlink():
        return False
    return not any(path.iterdir()) or bool(marker and (path / marker).is_file())


def _swap(new: Path, path: Path) -> None:
    """Put ``new`` in the place of ``path``; on failure the old folder is back in place."""
    old = new.with_name(new.name + "-old")
    try:
        if path.exists():
            path.rename(old)
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}; choose a writable place")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
