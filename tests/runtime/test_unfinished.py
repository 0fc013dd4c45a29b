"""Ctrl-C between any two lines of writing: what was there or what is new remains, nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.runtime.folders import names, old_folder

from fewstep.runtime import files, unfinished
from fewstep.runtime.files import replacing, replacing_folder, require_writable
from fewstep.runtime.lock import LOCK_NAME
from fewstep.runtime.unfinished import remove_unfinished

_WATCHED = {files.__file__, unfinished.__file__}


def _done(line: int, work: Callable[[], None]) -> bool:
    """Do some work with Ctrl-C before the ``line``-th line of writing; whether it had fewer."""
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in _WATCHED:
            return None
        left -= event == "line"
        if left == 0 and event == "line":
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with suppress(KeyboardInterrupt):
            work()
    finally:
        sys.settrace(before)
    return left > 0


def _interrupted(root: Path, work: Callable[[Path], None], old: bool) -> Iterator[Path]:
    """Folders in which some work was interrupted, once at each of its lines."""
    for line in range(1, 500):
        place = root / str(line)
        place.mkdir()
        if old:
            old_folder(place)
        done = _done(line, lambda place=place: work(place))  # type: ignore[misc]
        remove_unfinished()
        yield place
        if done:
            assert line > 10
            return
    pytest.fail("the work does not end")


def _write_file(place: Path) -> None:
    with replacing(place / "bundle" / "file") as temporary:
        temporary.write_text("whole")


def _write_folder(place: Path) -> None:
    with replacing_folder(place / "bundle", overwrite=True, marker="old") as temporary:
        (temporary / "new").touch()


@pytest.mark.parametrize("old", [False, True])
def test_of_a_file_nothing_or_the_whole_remains(tmp_path: Path, old: bool) -> None:
    beside = ["old"] if old else []
    for place in _interrupted(tmp_path, _write_file, old):
        left = names(place / "bundle") if (place / "bundle").exists() else []
        assert left in (beside, sorted([*beside, "file"]))
        assert "file" not in left or (place / "bundle" / "file").read_text() == "whole"


@pytest.mark.parametrize("old", [False, True])
def test_of_folders_the_old_or_the_new_one_remains(tmp_path: Path, old: bool) -> None:
    for place in _interrupted(tmp_path, _write_folder, old):
        left = {name: names(place / name) for name in names(place)}
        left = {name: [each for each in left[name] if each != LOCK_NAME] for name in left}
        assert left in ({"bundle": ["old"]} if old else {}, {"bundle": ["new"]})


def test_of_a_trial_nothing_remains(tmp_path: Path) -> None:
    trial = lambda place: require_writable(place / "bundle" / "file")  # noqa: E731
    for place in _interrupted(tmp_path, trial, True):
        assert names(place) == ["bundle"] and names(place / "bundle") == ["old"]
