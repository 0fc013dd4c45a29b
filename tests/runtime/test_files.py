"""Writing without half-written results: nothing remains of a failure, and nothing old is lost.

Covered: success, exceptions and interrupts inside the block, existing targets, places that cannot
be written (below a regular file, so that it holds for root too), and permissions. What systems
refuse and what other processes do is in ``test_places.py``.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from tests.runtime.folders import names, old_folder

from fewstep.runtime.errors import OutputError
from fewstep.runtime.files import replacing, replacing_folder, sha256

_FAILURES = [ValueError, KeyboardInterrupt, SystemExit, MemoryError]


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """The umask that the permissions below are computed for."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder, so that whatever remains is seen."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_of_every_block_boundary(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    path = tmp_path / "file"
    path.write_bytes(content[:size])
    assert sha256(path) == hashlib.sha256(content[:size]).hexdigest()


def test_file_appears_only_at_the_end(place: Path) -> None:
    target = place / "sub" / "image.png"
    with replacing(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.suffix == ".png"
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["image.png"]


def test_file_replaces_an_existing_one(place: Path) -> None:
    target = place / "image.png"
    target.write_bytes(b"old")
    with replacing(target) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


@pytest.mark.parametrize("failure", _FAILURES)
def test_failed_file_leaves_the_old_one(place: Path, failure: type[BaseException]) -> None:
    target = place / "image.png"
    target.write_bytes(b"old")
    with pytest.raises(failure), replacing(target) as temporary:
        temporary.write_bytes(b"half")
        raise failure
    assert target.read_bytes() == b"old"
    assert names(place) == ["image.png"]


def test_full_disk_names_the_target_and_leaves_nothing(place: Path) -> None:
    target = place / "image.png"
    with pytest.raises(OutputError, match="image.png: No space left on device"), replacing(target):
        raise OSError(28, "No space left on device")
    assert names(place) == []


def test_file_cannot_take_the_place_of_a_folder(place: Path) -> None:
    target = place / "taken"
    target.mkdir()
    with pytest.raises(OutputError, match="cannot write"), replacing(target) as temporary:
        temporary.write_bytes(b"new")
    assert target.is_dir()
    assert names(place) == ["taken"]


def test_folder_appears_only_at_the_end(place: Path) -> None:
    target = place / "sub" / "bundle"
    with replacing_folder(target) as temporary:
        (temporary / "a").write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert (target / "a").read_text() == "new"
    assert names(target.parent) == ["bundle"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


def test_existing_folder_is_refused_before_any_work(place: Path) -> None:
    target = old_folder(place)
    with (
        pytest.raises(OutputError, match="exists already; remove it or pass --force"),
        replacing_folder(target),
    ):
        pytest.fail("the block must not run")
    assert names(place) == ["bundle"]
    assert names(target) == ["old"]


def test_existing_folder_is_replaced_as_a_whole(place: Path) -> None:
    target = old_folder(place)
    with replacing_folder(target, overwrite=True, marker="old") as temporary:
        (temporary / "new").touch()
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(place) == ["bundle"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("failure", _FAILURES)
def test_failed_folder_leaves_nothing_but_the_old_one(
    place: Path, failure: type[BaseException], overwrite: bool
) -> None:
    target = old_folder(place) if overwrite else place / "bundle"
    with (
        pytest.raises(failure),
        replacing_folder(target, overwrite=overwrite, marker="old") as temporary,
    ):
        (temporary / "deep").mkdir()
        (temporary / "deep" / "half").touch()
        raise failure
    assert names(place) == (["bundle"] if overwrite else [])
    if overwrite:
        assert names(target) == ["old"]


def test_full_disk_while_filling_a_folder_leaves_nothing(place: Path) -> None:
    with (
        pytest.raises(OutputError, match="bundle: No space left on device"),
        replacing_folder(place / "bundle") as temporary,
    ):
        (temporary / "half").touch()
        raise OSError(28, "No space left on device")
    assert names(place) == []


@pytest.mark.parametrize("failure", [PermissionError, KeyboardInterrupt])
def test_old_folder_is_put_back_if_the_new_one_cannot_be_renamed(
    place: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    target = old_folder(place)
    rename = Path.rename

    def fail_for_the_new(self: Path, to: Path) -> Path:
        if (self / "new").exists():
            raise failure
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with (
        pytest.raises((OutputError, KeyboardInterrupt)),
        replacing_folder(target, overwrite=True, marker="old") as temporary,
    ):
        (temporary / "new").touch()
    assert names(target) == ["old"]
    kept = [name for name in names(place) if name != "bundle"]
    assert len(kept) == (failure is PermissionError)  # what was finished is not thrown away
    assert all(names(place / name) == ["new"] for name in kept)


@pytest.mark.parametrize("marker", ["", "bundle.json"])
@pytest.mark.parametrize("kind", ["file", "other folder", "link to a folder"])
def test_only_a_folder_of_its_own_kind_is_replaced(place: Path, kind: str, marker: str) -> None:
    target = place / "bundle"
    if kind == "file":
        target.write_text("precious")
    elif kind == "other folder":
        target.mkdir()
        (target / "precious").touch()
    else:
        (place / "elsewhere").mkdir()
        (place / "elsewhere" / "bundle.json").touch()
        target.symlink_to("elsewhere")
    before = sorted(str(path) for path in place.rglob("*"))
    with (
        pytest.raises(OutputError, match="is not .* folder.*, so it is not replaced; choose"),
        replacing_folder(target, overwrite=True, marker=marker),
    ):
        pytest.fail("the block must not run")
    assert sorted(str(path) for path in place.rglob("*")) == before


@pytest.mark.parametrize("marker", ["", "bundle.json"])
def test_an_empty_folder_is_replaced(place: Path, marker: str) -> None:
    target = place / "bundle"
    target.mkdir()
    with replacing_folder(target, overwrite=True, marker=marker) as temporary:
        (temporary / "new").touch()
    assert names(target) == ["new"]
    assert names(place) == ["bundle"]


@pytest.mark.parametrize("context", [replacing, replacing_folder])
def test_place_below_a_regular_file_cannot_be_written(
    place: Path, context: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    (place / "file").write_text("not a folder")
    target = place / "file" / "sub" / "out"
    with (
        pytest.raises(OutputError, match="cannot write .*out: .*; choose") as caught,
        context(target),
    ):
        pytest.fail("the block must not run")
    assert isinstance(caught.value.__cause__, OSError)
    assert names(place) == ["file"]


def test_folders_made_for_a_failed_result_are_removed_again(tmp_path: Path) -> None:
    with pytest.raises(KeyError), replacing_folder(tmp_path / "new" / "deep" / "bundle"):
        raise KeyError
    with pytest.raises(KeyError), replacing(tmp_path / "other" / "file.txt"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_folders_made_for_a_result_stay(tmp_path: Path) -> None:
    with replacing(tmp_path / "new" / "file.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "new" / "file.txt").read_text() == "x"
