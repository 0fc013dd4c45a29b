"""Places to write to, as systems have them: nothing finished is lost, nothing of others is touched.

Covered: places tried before the work, file systems that refuse modes and renaming, pipes and
devices, mounts, what killed processes left, and two that make the same folder.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.runtime.folders import names, old_folder

from fewstep.runtime.errors import FewstepWarning, OutputError
from fewstep.runtime.files import replacing, replacing_folder, require_writable
from fewstep.runtime.lock import locked
from fewstep.runtime.unfinished import MARK, sweep


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder, so that whatever remains is seen."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


# --- trying a place before the work


@pytest.mark.parametrize("there", [True, False])
def test_trying_a_place_leaves_it_as_it_was(place: Path, there: bool) -> None:
    target = place / "new" / "deep" / "x.png"
    if there:
        target.parent.mkdir(parents=True)
        target.write_bytes(b"old")
        os.utime(target, ns=(1, 1))
    require_writable(target)
    assert sorted(place.rglob("*")) == ([target.parents[1], target.parent, target] if there else [])
    if there:
        assert (target.read_bytes(), target.stat().st_mtime_ns) == (b"old", 1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "it is a folder"),
        ("file/x.png", "file is a file, not a folder"),
        ("file/deep/x.png", "Not a directory"),
        ("new/" + "x" * 300, "File name too long"),
        ("x" * 300 + "/x.png", "File name too long"),
        ("nul\0byte", "null byte"),
    ],
)
def test_place_that_cannot_be_written_is_known_before_the_work(
    place: Path, name: str, reason: str
) -> None:
    (place / "folder").mkdir()
    (place / "file").touch()
    with pytest.raises(OutputError, match=f"cannot write .*{reason}"):
        require_writable(place / name)
    assert names(place) == ["file", "folder"]


def test_place_on_a_read_only_file_system_is_refused() -> None:
    """The kernel's own: root may write anywhere else."""
    with pytest.raises(OutputError, match="cannot write /proc"):
        require_writable(Path("/proc/fewstep.png"))


def test_longest_names_can_be_written(place: Path) -> None:
    target = place / ("ü" * 125 + ".png")
    require_writable(target)
    with replacing(target) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"


# --- what file systems refuse


def test_refused_modes_do_not_cost_the_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with replacing(place / "x.png") as temporary:
        temporary.write_bytes(b"new")
    with replacing_folder(place / "bundle") as folder:
        (folder / "a").touch()
    assert names(place) == ["bundle", "x.png"]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES])
def test_file_that_cannot_be_replaced_is_written_in_place(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    target = place / "x.png"
    target.write_bytes(b"old and longer")
    inode = target.stat().st_ino
    _refuse_renaming(monkeypatch, number)
    with pytest.warns(FewstepWarning, match="written in place"), replacing(target) as temporary:
        temporary.write_bytes(b"new")
    assert (target.read_bytes(), target.stat().st_ino) == (b"new", inode)
    assert names(place) == ["x.png"]


def test_finished_file_that_cannot_be_put_in_its_place_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _refuse_renaming(monkeypatch, errno.EACCES)
    with pytest.raises(OutputError, match="what was made is kept as ") as caught:  # noqa: SIM117
        with replacing(place / "x.png") as temporary:
            temporary.write_bytes(b"new")
    kept = Path(str(caught.value).rpartition("kept as ")[2])
    assert kept.read_bytes() == b"new"
    sweep(place)
    assert kept.exists()
    assert not (place / "x.png").exists()


def test_pipes_and_devices_are_written_to_and_stay(place: Path) -> None:
    pipe = place / "pipe"
    os.mkfifo(pipe)
    require_writable(pipe)
    read = list[bytes]()
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with replacing(pipe) as temporary:
        temporary.write_bytes(b"new")
    reader.join()
    assert read == [b"new"]
    assert pipe.is_fifo()


def test_mounted_file_and_folder_get_new_contents(place: Path) -> None:
    """As with ``docker run -v``: a file and a folder that are mounts of their own."""
    code = f"""
from pathlib import Path
from fewstep.runtime.files import replacing, replacing_folder, require_writable
place = Path({str(place)!r})
require_writable(place / "x.png")
with replacing(place / "x.png") as temporary:
    temporary.write_bytes(b"new")
for content in "12":
    with replacing_folder(place / "bundle", overwrite=True, marker="mark") as folder:
        (folder / "mark").write_text(content)
        (folder / f"only-{{content}}").mkdir()
"""
    (place / "source.png").touch()
    (place / "x.png").touch()
    (place / "source").mkdir()
    (place / "bundle").mkdir()
    mount = "mount --bind $0/source.png $0/x.png && mount --bind $0/source $0/bundle"
    command = ["unshare", "-m", "bash", "-c", f'{mount} && "$1" -c "$2"', str(place)]
    if subprocess.run(
        [*command[:4], mount, str(place)], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounts of its own are for root with the right to make them")
    done = subprocess.run([*command, sys.executable, code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (place / "source.png").read_bytes() == b"new"
    assert names(place / "source") == ["mark", "only-2"]
    assert (place / "source" / "mark").read_text() == "2"
    assert names(place) == ["bundle", "source", "source.png", "x.png"]


# --- killed processes, and others at the same place


_UNFINISHED = """
import sys, time
from pathlib import Path
from fewstep.runtime.files import replacing, replacing_folder
place = Path(sys.argv[1])
with replacing_folder(place / "bundle") as folder, replacing(place / "x.png") as temporary:
    (folder / "half").touch()
    print("half", flush=True)
    time.sleep(60)
"""


def test_what_killed_processes_left_is_removed_and_what_is_being_written_stays(place: Path) -> None:
    processes = [_unfinished(place) for _ in range(2)]
    assert len(names(place)) == 4
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait()
    require_writable(place / "y.png")
    left = names(place)
    assert len(left) == 2
    assert all(MARK in name for name in left)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].wait()
    with replacing_folder(place / "bundle"):
        pass
    assert names(place) == ["bundle"]


def test_killed_exchange_of_folders_is_undone(place: Path) -> None:
    """Killed between the two renames: the old folder is there, under another name."""
    (place / f".bundle-12345678{MARK}").mkdir()
    old = place / f".bundle-12345678{MARK}-old"
    old.mkdir()
    (old / "precious").touch()
    with pytest.raises(OutputError, match="exists already"), replacing_folder(place / "bundle"):
        pytest.fail("the block must not run")
    assert names(place / "bundle") == ["precious"]


def test_hidden_files_of_others_stay(place: Path) -> None:
    mine = [".bundle-backup12", ".x-12345678.png", ".hidden"]
    for name in mine:
        (place / name).touch()
    with replacing_folder(place / "bundle"):
        pass
    require_writable(place / "x.png")
    assert names(place) == sorted([*mine, "bundle"])


def test_second_that_makes_the_same_folder_is_refused_and_kept(place: Path) -> None:
    target = place / "bundle"
    with pytest.raises(OutputError, match="exists already.* is kept as ") as caught:  # noqa: SIM117
        with replacing_folder(target) as second:
            (second / "second").touch()
            with replacing_folder(target) as first:
                (first / "first").touch()
    assert names(target) == ["first"]
    assert names(Path(str(caught.value).rpartition("kept as ")[2])) == ["second"]


def test_folder_is_not_replaced_while_another_holds_its_lock(place: Path) -> None:
    target = old_folder(place)
    released = threading.Event()

    def change() -> None:
        with locked(target):
            begun.set()
            released.wait(10)
            (target / "added").touch()

    begun, seen = threading.Event(), list[str]()
    writer = threading.Thread(target=change)
    writer.start()
    begun.wait(10)
    with replacing_folder(target, overwrite=True, marker="old") as temporary:
        (temporary / "old").touch()
        seen += names(target)
        threading.Timer(0.2, released.set).start()
    writer.join()
    assert "added" not in seen
    assert names(target) == ["old"]
    assert names(place) == ["bundle"]


def _unfinished(place: Path) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2] / "runtime"
    process = subprocess.Popen(
        [sys.executable, "-c", _UNFINISHED, str(place)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


def _refuse_renaming(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Renaming to ``x.png`` fails as on a mount."""
    replace = Path.replace

    def refuse(self: Path, to: Path) -> Path:
        if Path(to).name == "x.png":
            raise OSError(number, os.strerror(number))
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", refuse)
