"""Updating a bundle: files are added, replaced and removed, and the manifest follows.

Covered: what is written, hashed and removed; names that lead out of the folder or that cannot be
files; links; locales without the characters of the manifest; and others that change the bundle
meanwhile. Interrupted and refused writes are in ``tests/build``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.links import linked_blobs

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, OutputError
from fewstep.runtime.files import sha256
from fewstep.runtime.lock import LOCK_NAME
from fewstep.runtime.manifest import MANIFEST_NAME
from fewstep.runtime.unfinished import MARK

_SHA = "0" * 64
_EVERY_FILE = {"transformer.onnx", "policy.onnx", "decoder.onnx", "golden.npz"}


def _kernels(*files: str) -> dict[str, Any]:
    """A manifest field that names ``files``."""
    cubins = {f"8.{i}": file for i, file in enumerate(files)}
    return {"compiler": "NVRTC 13.0", "sources_sha256": _SHA, "cubins": cubins}


def test_update_writes_files_with_hashes_and_leaves_the_others(bundle_copy: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in bundle_copy.glob("*.onnx")}
    old = Bundle.read(bundle_copy)
    new = old.update({"a.bin": b"alpha", "deep/er/b.bin": b""})
    assert (bundle_copy / "a.bin").read_bytes() == b"alpha"
    assert new.manifest.files["a.bin"].bytes == 5
    assert new.manifest.files["a.bin"].sha256 == sha256(bundle_copy / "a.bin")
    assert set(new.manifest.files) == _EVERY_FILE | {"a.bin", "deep/er/b.bin"}
    assert Bundle.read(bundle_copy).manifest == new.manifest
    assert new.damage() == {}
    assert old.manifest.files.keys() == _EVERY_FILE
    assert {path.name: path.stat().st_mtime_ns for path in bundle_copy.glob("*.onnx")} == before


def test_update_without_changes_writes_the_same_manifest(bundle_copy: Path) -> None:
    before = (bundle_copy / MANIFEST_NAME).read_bytes()
    assert Bundle.read(bundle_copy).update({}).manifest == Bundle.read(bundle_copy).manifest
    assert (bundle_copy / MANIFEST_NAME).read_bytes() == before


def test_update_removes_what_only_the_old_values_named(bundle_copy: Path) -> None:
    files = {"one.cubin": b"1", "two.cubin": b"2", "kept.txt": b"3"}
    first = Bundle.read(bundle_copy).update(files, kernels=_kernels("one.cubin", "two.cubin"))
    second = first.update({"three.cubin": b"4"}, kernels=_kernels("two.cubin", "three.cubin"))
    assert sorted(path.name for path in bundle_copy.glob("*.cubin")) == ["three.cubin", "two.cubin"]
    assert set(second.manifest.files) == _EVERY_FILE | {"two.cubin", "three.cubin", "kept.txt"}
    third = second.update({}, kernels=None, golden=None)
    assert set(third.manifest.files) == _EVERY_FILE - {"golden.npz"} | {"kept.txt"}
    assert not (bundle_copy / "golden.npz").exists()
    assert Bundle.read(bundle_copy).damage() == {}


def test_file_that_is_named_twice_stays(bundle_copy: Path) -> None:
    """Named by the kernels and by a graph: only one of the names goes."""
    bundle = Bundle.read(bundle_copy).update({}, kernels=_kernels("decoder.onnx"))
    assert bundle.update({}, kernels=None).damage() == {}


def test_replaced_file_that_is_gone_already_does_not_matter(bundle_copy: Path) -> None:
    bundle = Bundle.read(bundle_copy).update({"x.cubin": b"1"}, kernels=_kernels("x.cubin"))
    (bundle_copy / "x.cubin").unlink()
    assert set(bundle.update({}, kernels=None).manifest.files) == _EVERY_FILE


@pytest.mark.parametrize("name", ["../out", "/absolute", "sub/../../out", "nul\0byte", ".."])
def test_update_writes_nothing_outside_the_bundle(bundle_copy: Path, name: str) -> None:
    before = sorted(bundle_copy.parent.rglob("*"))
    manifest = (bundle_copy / MANIFEST_NAME).read_bytes()
    with pytest.raises(BundleError):
        Bundle.read(bundle_copy).update({name: b"content"})
    assert sorted(bundle_copy.parent.rglob("*")) == before
    assert (bundle_copy / MANIFEST_NAME).read_bytes() == manifest


def test_update_through_a_link_to_the_bundle(bundle_copy: Path) -> None:
    link = bundle_copy.with_name("link")
    link.symlink_to(bundle_copy)
    Bundle.read(link).update({"a.bin": b"alpha"})
    assert link.is_symlink()
    assert Bundle.read(bundle_copy).verified("a.bin").read_bytes() == b"alpha"


@pytest.mark.parametrize("name", ["decoder.onnx/below", "folder"])
def test_update_of_an_impossible_place_is_an_output_error(bundle_copy: Path, name: str) -> None:
    (bundle_copy / "folder").mkdir()
    before = sorted(bundle_copy.rglob("*"))
    with pytest.raises(OutputError, match="cannot write"):
        Bundle.read(bundle_copy).update({name: b"content"})
    assert sorted(bundle_copy.rglob("*")) == before
    assert Bundle.read(bundle_copy).damage() == {}


def test_removed_link_does_not_take_its_target_along(bundle_copy: Path) -> None:
    bundle = Bundle.read(bundle_copy).update({"x.cubin": b"1"}, kernels=_kernels("x.cubin"))
    (bundle_copy / "x.cubin").rename(bundle_copy / "mine")
    (bundle_copy / "x.cubin").symlink_to("mine")
    bundle.update({}, kernels=None)
    assert (bundle_copy / "mine").exists()
    assert not (bundle_copy / "x.cubin").is_symlink()


def test_update_writes_utf_8_whatever_the_locale(bundle_copy: Path) -> None:
    file = bundle_copy / MANIFEST_NAME
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["condition"]["class_names"][0] = "Rübe"
    file.write_text(json.dumps(content), encoding="utf-8")
    code = (
        "import sys; from fewstep.runtime.bundle import Bundle; "
        "Bundle.read(sys.argv[1]).update({'a.bin': b'alpha'})"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    root = Path(__file__).parents[2] / "runtime"
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle_copy)],
        env={**os.environ, **ascii_only, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    condition = Bundle.read(bundle_copy).manifest.model.condition
    assert condition.kind == "class"
    assert condition.class_names is not None
    assert condition.class_names[0] == "Rübe"


def test_update_of_a_linked_bundle_writes_into_none_of_the_blobs(bundle_copy: Path) -> None:
    blobs = linked_blobs(bundle_copy)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in blobs.values()}
    bundle = Bundle.read(bundle_copy).update({"x.cubin": b"1"}, kernels=_kernels("x.cubin"))
    bundle.update({}, golden=None)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert not (bundle_copy / MANIFEST_NAME).is_symlink()
    assert (bundle_copy / "decoder.onnx").is_symlink()
    assert not (bundle_copy / "golden.npz").is_symlink()
    assert Bundle.read(bundle_copy).damage() == {}
    assert sorted(path.name for path in bundle_copy.parent.glob("blobs/*")) == sorted(
        path.name for path in before
    )


def test_update_into_a_folder_that_is_a_link_out_of_the_bundle_is_refused(
    bundle_copy: Path,
) -> None:
    outside = bundle_copy.with_name("outside")
    outside.mkdir()
    (bundle_copy / "engines").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.read(bundle_copy).update({"engines/x": b"content"})
    assert list(outside.iterdir()) == []


# --- others


def test_what_others_have_changed_meanwhile_stays(bundle_copy: Path) -> None:
    mine, theirs = Bundle.read(bundle_copy), Bundle.read(bundle_copy)
    theirs.update({"x.cubin": b"1"}, kernels=_kernels("x.cubin"))
    changed = mine.update({"a.bin": b"alpha"}, name="mine")
    assert changed.manifest.kernels is not None
    assert changed.manifest.files.keys() >= {"x.cubin", "a.bin"}
    assert Bundle.read(bundle_copy).damage() == {}


def test_change_of_what_others_have_changed_is_refused(bundle_copy: Path) -> None:
    mine, theirs = Bundle.read(bundle_copy), Bundle.read(bundle_copy)
    theirs.update({"x.cubin": b"1"}, kernels=_kernels("x.cubin"))
    before = sorted(bundle_copy.rglob("*"))
    with pytest.raises(BundleError, match="has changed kernels of the bundle meanwhile; run"):
        mine.update({"y.cubin": b"2"}, kernels=_kernels("y.cubin"))
    assert sorted(bundle_copy.rglob("*")) == before


def test_values_that_are_no_manifest_are_a_bundle_error(bundle_copy: Path) -> None:
    before = sorted(bundle_copy.rglob("*"))
    with pytest.raises(BundleError, match="not a valid manifest: kernels"):
        Bundle.read(bundle_copy).update({"a.bin": b"alpha"}, kernels={"compiler": 1})
    assert sorted(bundle_copy.rglob("*")) == before


def test_locked_bundle_is_read_anew_and_swept(bundle_copy: Path) -> None:
    (bundle_copy / "engines").mkdir()
    Bundle.read(bundle_copy).update({"engines/x.engine": b"engine"})
    left = [bundle_copy / f".x-12345678{MARK}.json", bundle_copy / f"engines/.x-12345678{MARK}"]
    for path in left:
        path.write_bytes(b"half")
    with Bundle.locked(bundle_copy) as now:
        assert not any(path.exists() for path in left)
        assert (bundle_copy / LOCK_NAME).exists()
        now.update({}, name="inside")
    assert Bundle.read(bundle_copy).manifest.name == "inside"
    assert not (bundle_copy / LOCK_NAME).exists()


_ADD = """
import sys
from fewstep.runtime.bundle import Bundle
for number in range(10):
    Bundle.read(sys.argv[1]).update({f"{sys.argv[2]}-{number}": sys.argv[2].encode()})
"""


def test_processes_that_add_at_once_lose_nothing(bundle_copy: Path) -> None:
    root = Path(__file__).parents[2] / "runtime"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    link = bundle_copy.with_name("link")
    link.symlink_to(bundle_copy)
    writers = [
        subprocess.Popen([sys.executable, "-c", _ADD, str(place), name], env=environment)
        for place, name in [(bundle_copy, "a"), (link, "b"), (bundle_copy, "c")]
    ]
    assert [each.wait(120) for each in writers] == [0, 0, 0]
    added = {f"{name}-{number}" for name in "abc" for number in range(10)}
    bundle = Bundle.read(bundle_copy)
    assert set(bundle.manifest.files) == _EVERY_FILE | added
    assert bundle.damage() == {}
