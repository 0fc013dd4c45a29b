"""Bundles in one file: the same bytes every time, and nothing but a sound bundle comes out."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, OutputError
from fewstep.runtime.packed import pack, unpack


@pytest.fixture
def packed(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle in a file."""
    path = tmp_path / "tiny-1.0.zip"
    pack(Bundle.read(tiny_bundle), path)
    return path


def test_a_bundle_comes_out_as_it_went_in(packed: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = unpack(packed, tmp_path / "out")
    assert bundle.damage() == {}
    there = {path.name: path.read_bytes() for path in bundle.path.iterdir()}
    names = {"bundle.json", *bundle.manifest.files}
    assert there == {name: (tiny_bundle / name).read_bytes() for name in names}


def test_any_unzip_leaves_a_folder_that_is_a_bundle(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    assert Bundle.read(tmp_path / "tiny-1.0").damage() == {}


def test_the_same_bundle_gives_the_same_bytes(
    packed: Path, bundle_copy: Path, tmp_path: Path
) -> None:
    for number, path in enumerate(bundle_copy.iterdir()):
        os.utime(path, (number, number))
        path.chmod(0o600)
    (bundle_copy / "not-listed").write_text("x")
    again = tmp_path / "again" / packed.name
    pack(Bundle.read(bundle_copy), again)
    assert again.read_bytes() == packed.read_bytes()


def test_a_damaged_bundle_is_not_packed(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "decoder.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        pack(Bundle.read(bundle_copy), tmp_path / "new.zip")
    assert not (tmp_path / "new.zip").exists()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5_000])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _page(path: Path) -> None:
    path.write_text("<html>Not Found</html>")


def _rewritten(change: Callable[[dict[str, bytes]], object]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        change(files)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)

    return rewrite


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip,
        _empty,
        _page,
        _rewritten(lambda files: files.clear()),
        _rewritten(lambda files: files.update({"tiny-1.0/bundle.json": b"{"})),
        _rewritten(lambda files: files.update({"other/bundle.json": b"{}"})),
        _rewritten(lambda files: files.update({"tiny-1.0/decoder.onnx": b"other"})),
        _rewritten(lambda files: files.pop("tiny-1.0/decoder.onnx")),
    ],
    ids=["truncated", "flipped", "empty", "page", "none", "json", "two", "other", "absent"],
)
def test_what_is_no_sound_bundle_leaves_nothing(
    packed: Path, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    damage(packed)
    with pytest.raises(BundleError, match=r"tiny-1\.0\.zip is not a bundle .*: download it again"):
        unpack(packed, tmp_path / "out" / "bundle")
    assert not (tmp_path / "out").exists()


def test_only_what_the_manifest_lists_is_unpacked(packed: Path, tmp_path: Path) -> None:
    extra = {"../outside": b"x", "/outside": b"x", "tiny-1.0/more.txt": b"x"}
    _rewritten(lambda files: files.update(extra))(packed)
    bundle = unpack(packed, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("outside"))
    assert not (bundle.path / "more.txt").exists()


@pytest.mark.parametrize("name", ["absent.zip", "folder"])
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BundleError, match="cannot be read"):
        unpack(tmp_path / name, tmp_path / "out")


def test_another_bundle_is_replaced_and_another_folder_is_not(
    packed: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_bundle, tmp_path / "old")
    assert unpack(packed, tmp_path / "old").manifest.family == "adanat"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    with pytest.raises(OutputError, match="not replaced"):
        unpack(packed, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").exists()
