"""Reading bundles: what is refused, what is noticed, and what still works.

Covered: no bundle, broken and newer manifests, paths and links that leave the folder, truncated,
changed and missing files, the list of all damage, array archives, and read-only folders.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.links import linked_blobs
from tests.runtime.verify.rehash import write_manifest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError
from fewstep.runtime.files import sha256
from fewstep.runtime.generator import Generator
from fewstep.runtime.manifest import MANIFEST_NAME, SCHEMA

_SHA = "0" * 64
_EVERY_FILE = {"transformer.onnx", "policy.onnx", "decoder.onnx", "golden.npz"}

Content = dict[str, Any]


def _edit(bundle: Path, change: Callable[[Content], object]) -> None:
    """Rewrite the manifest after ``change``."""
    file = bundle / MANIFEST_NAME
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def _list_file(name: str) -> Callable[[Content], object]:
    return lambda content: content["files"].update({name: {"bytes": 1, "sha256": _SHA}})


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# --- the manifest


@pytest.mark.parametrize("kind", ["absent", "empty folder", "file", "manifest is a folder"])
def test_no_bundle_says_how_to_make_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bundle"
    if kind == "file":
        path.write_text("{}")
    elif kind != "absent":
        path.mkdir()
    if kind == "manifest is a folder":
        (path / MANIFEST_NAME).mkdir()
    with pytest.raises(BundleError, match="no bundle at .*bundle.*fewstep export"):
        Bundle.read(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"family": }', b"\xff\xfe\x00", b'{"a": 1} trailing']
)
def test_broken_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{MANIFEST_NAME} cannot be read as JSON"):
        Bundle.read(tmp_path)


@pytest.mark.parametrize("content", ["[]", "null", "3", '"bundle"', "{}"])
def test_json_of_another_kind_is_not_a_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(content)
    with pytest.raises(BundleError, match="is not a valid manifest"):
        Bundle.read(tmp_path)


def test_unknown_and_wrong_fields_are_all_named(bundle_copy: Path) -> None:
    def change(content: Content) -> None:
        content["surprise"] = 1
        content["model"]["grid"] = [4, -4]
        content["provenance"]["who"] = "me"

    _edit(bundle_copy, change)
    with pytest.raises(BundleError) as caught:
        Bundle.read(bundle_copy)
    for place in ("surprise", "model.grid.1", "provenance.who"):
        assert place in str(caught.value)


def test_newer_schema_asks_for_an_upgrade_whatever_else_it_holds(bundle_copy: Path) -> None:
    _edit(bundle_copy, lambda content: content.update(schema_version=SCHEMA + 1, invented=True))
    with pytest.raises(BundleError, match=f"schema version {SCHEMA + 1}.*pip install --upgrade"):
        Bundle.read(bundle_copy)


# --- paths


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "sub/../../outside", "sub/../../../etc/passwd", ".."]
)
def test_paths_that_leave_the_bundle_are_refused_on_reading(bundle_copy: Path, name: str) -> None:
    (bundle_copy.parent / "outside").write_text("secret")
    _edit(bundle_copy, _list_file(name))
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.read(bundle_copy)


def test_sibling_folder_with_the_same_prefix_is_outside(bundle_copy: Path) -> None:
    sibling = bundle_copy.with_name(bundle_copy.name + "-2")
    sibling.mkdir()
    (sibling / "graph").touch()
    _edit(bundle_copy, _list_file(f"../{sibling.name}/graph"))
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.read(bundle_copy)


def test_links_out_of_the_bundle_lead_to_what_the_hash_says(bundle_copy: Path) -> None:
    blob = linked_blobs(bundle_copy)["decoder.onnx"]
    assert Bundle.read(bundle_copy).damage() == {}
    with Generator.open(bundle_copy, threads=1) as generator:
        assert len(generator.generate(class_ids=[0], steps=2, seed=1).images) == 1
    blob.write_bytes(blob.read_bytes()[::-1])
    damaged = Bundle.read(bundle_copy)
    assert set(damaged.damage()) == {"decoder.onnx"}
    with pytest.raises(BundleError, match="does not have the manifest's SHA-256"):
        damaged.graph_path("decoder")


@pytest.mark.parametrize("target", ["/dev/zero", "/etc", "/proc/self/mem"])
def test_links_to_what_is_no_file_of_this_size_are_damage(bundle_copy: Path, target: str) -> None:
    (bundle_copy / "decoder.onnx").unlink()
    (bundle_copy / "decoder.onnx").symlink_to(target)
    assert set(Bundle.read(bundle_copy).damage()) == {"decoder.onnx"}


def test_links_within_the_bundle_and_to_the_bundle_work(bundle_copy: Path) -> None:
    (bundle_copy / "decoder.onnx").rename(bundle_copy / "real.onnx")
    (bundle_copy / "decoder.onnx").symlink_to("real.onnx")
    link = bundle_copy.with_name("link")
    link.symlink_to(bundle_copy)
    assert Bundle.read(link).graph_path("decoder").samefile(bundle_copy / "real.onnx")


@pytest.mark.parametrize("name", ["loop", "nul\0byte"])
def test_paths_that_cannot_be_resolved_are_refused(bundle_copy: Path, name: str) -> None:
    (bundle_copy / "loop").symlink_to("loop")
    _edit(bundle_copy, _list_file(name))
    with pytest.raises(BundleError):
        Bundle.read(bundle_copy).verified(name)


def test_unlisted_files_are_not_served(bundle_copy: Path) -> None:
    (bundle_copy / "extra.onnx").touch()
    bundle = Bundle.read(bundle_copy)
    with pytest.raises(BundleError, match="unknown file 'decodr.onnx'.*'decoder.onnx'"):
        bundle.locate("decodr.onnx")
    with pytest.raises(BundleError, match="unknown file"):
        bundle.verified("extra.onnx")
    with pytest.raises(BundleError, match="unknown graph 'decodr'.*Did you mean 'decoder'"):
        bundle.graph_path("decodr")


# --- damage


@pytest.mark.parametrize("graph", ["transformer", "policy", "decoder"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_flip_a_bit, "does not have the manifest's SHA-256"),
        (_truncate, "bytes where the manifest says"),
        (_grow, "bytes where the manifest says"),
        (Path.unlink, "is missing"),
        (_replace_by_folder, "is missing"),
    ],
)
def test_damaged_graph_is_never_run(
    bundle_copy: Path, graph: str, damage: Callable[[Path], None], problem: str
) -> None:
    path = bundle_copy / f"{graph}.onnx"
    damage(path)
    with pytest.raises(BundleError, match=problem) as caught:
        Generator.open(bundle_copy, threads=1)
    assert str(path.name) in str(caught.value)
    assert "copy or export the bundle again" in str(caught.value)


def test_external_data_is_checked_with_its_graph(bundle_copy: Path) -> None:
    data = bundle_copy / "decoder.onnx.data"
    data.write_bytes(b"weights")
    info = {"bytes": 7, "sha256": sha256(data)}
    _edit(bundle_copy, lambda content: content["files"].update({data.name: info}))
    _edit(bundle_copy, lambda content: content["graphs"]["decoder"].update(external=[data.name]))
    assert Bundle.read(bundle_copy).graph_path("decoder").name == "decoder.onnx"
    data.write_bytes(b"wEights")
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data does not have"):
        Bundle.read(bundle_copy).graph_path("decoder")


def test_undamaged_bundle_reports_no_damage(tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    assert set(bundle.manifest.files) == _EVERY_FILE
    assert bundle.damage() == {}


def test_damage_lists_every_damaged_file(bundle_copy: Path) -> None:
    _flip_a_bit(bundle_copy / "decoder.onnx")
    _truncate(bundle_copy / "transformer.onnx")
    (bundle_copy / "golden.npz").unlink()
    damage = Bundle.read(bundle_copy).damage()
    assert set(damage) == _EVERY_FILE - {"policy.onnx"}
    assert "SHA-256" in damage["decoder.onnx"]
    assert "bytes" in damage["transformer.onnx"]
    assert damage["golden.npz"] == "is missing"


def test_bundle_without_its_golden_rollouts_still_generates(bundle_copy: Path) -> None:
    (bundle_copy / "golden.npz").unlink()
    with Generator.open(bundle_copy, threads=1) as generator:
        assert generator.generate(class_ids=[0], steps=1).images.shape == (1, 8, 8, 3)


def test_read_only_bundle_generates_and_stays_as_it_is(bundle_copy: Path) -> None:
    for path in (*bundle_copy.iterdir(), bundle_copy):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path.name: path.stat().st_mtime_ns for path in (bundle_copy, *bundle_copy.iterdir())}
    try:
        with Generator.open(bundle_copy, threads=1) as generator:
            assert generator.generate(class_ids=[1], steps=2).tokens.shape == (1, 16)
        after = {
            path.name: path.stat().st_mtime_ns for path in (bundle_copy, *bundle_copy.iterdir())
        }
        assert after == before  # root may write in spite of the mode, so see that nothing did
    finally:
        bundle_copy.chmod(0o755)


def test_moved_bundle_still_works(bundle_copy: Path) -> None:
    moved = shutil.move(bundle_copy, bundle_copy.with_name("elsewhere ü"))
    with Generator.open(moved, threads=1) as generator:
        assert generator.generate(class_ids=[2], steps=1).tokens.shape == (1, 16)


# --- arrays


def test_arrays_of_an_archive(tiny_text_bundle: Path) -> None:
    bundle = Bundle.read(tiny_text_bundle)
    condition = bundle.manifest.model.condition
    assert condition.kind == "text"
    assert condition.unconditional_file is not None
    arrays = bundle.arrays(condition.unconditional_file)
    assert {name: array.shape for name, array in arrays.items()} == {"text": (3, 12)}


@pytest.mark.parametrize("kind", ["garbage", "broken zip", "pickle"])
def test_listed_file_that_is_no_archive_is_refused(bundle_copy: Path, kind: str) -> None:
    file = bundle_copy / "arrays.npz"
    if kind == "garbage":
        file.write_bytes(b"not an archive")
    elif kind == "broken zip":
        file.write_bytes(b"PK\x03\x04 and nothing else")
    else:
        np.savez(file, text=np.array([{"an": "object"}], object), allow_pickle=True)
    info = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    _edit(bundle_copy, lambda content: content["files"].update({file.name: info}))
    with pytest.raises(BundleError, match=r"arrays\.npz is not an array archive"):
        Bundle.read(bundle_copy).arrays(file.name)


# --- writing


def test_written_manifest_lists_every_file_but_itself(bundle_copy: Path) -> None:
    manifest = Bundle.read(bundle_copy).manifest
    (bundle_copy / "sub").mkdir()
    (bundle_copy / "sub" / "notes.txt").write_text("hello")
    content = manifest.model_dump(exclude={"files"})
    written = write_manifest(bundle_copy, content)
    assert set(written.files) == _EVERY_FILE | {"sub/notes.txt"}
    assert Bundle.read(bundle_copy).manifest == written
    assert Bundle.read(bundle_copy).damage() == {}
