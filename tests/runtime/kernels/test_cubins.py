"""Cubins in a bundle: stored under the name of their contents.

The cubins are stand-ins, a few bytes each: nothing here looks into them. Covered: names, hashes and
what becomes of replaced files. Which cubin a GPU gets: ``test_cubin_loading.py``. When kernels
are stale: ``tests/build/test_stale.py``.
"""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path

from tests.runtime.kernels.cubin_stand_ins import COMPILER, compiled_for, kernels_of

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.generator import Generator
from fewstep.runtime.inspect import inspect
from fewstep.runtime.kernels.compile import sources_sha256
from fewstep.runtime.kernels.cubins import add_kernels
from fewstep.runtime.manifest import MANIFEST_NAME


def _cubin_files(path: Path) -> set[str]:
    return {each.relative_to(path).as_posix() for each in path.rglob("*.cubin")}


# --- storing


def test_cubins_are_stored_with_their_hashes(bundle: Bundle) -> None:
    compiled = compiled_for("8.7", "12.0")
    added = add_kernels(bundle, compiled)
    info = kernels_of(added)
    assert (info.compiler, info.sources_sha256) == (COMPILER, sources_sha256())
    for capability, content in compiled.cubins.items():
        name = info.cubins[capability]
        assert (bundle.path / name).read_bytes() == content
        listed = added.manifest.files[name]
        assert (listed.bytes, listed.sha256) == (len(content), sha256(content).hexdigest())
    assert added.damage() == {}


def test_the_returned_bundle_is_the_one_on_disk(bundle: Bundle) -> None:
    added = add_kernels(bundle, compiled_for("8.7"))
    assert Bundle.read(bundle.path).manifest == added.manifest
    assert bundle.manifest.kernels is None  # what was read before is a value of its own


def test_everything_else_in_the_manifest_stays(bundle: Bundle) -> None:
    before = json.loads((bundle.path / MANIFEST_NAME).read_text(encoding="utf-8"))
    add_kernels(bundle, compiled_for("8.7"))
    after = json.loads((bundle.path / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert after.pop("kernels")
    assert after["files"].items() >= before["files"].items()
    for content in (before, after):
        content.pop("files")
        content.pop("kernels", None)
    assert after == before


def test_names_tell_the_architecture_and_the_contents(bundle: Bundle) -> None:
    names = kernels_of(add_kernels(bundle, compiled_for("8.7", "12.0"))).cubins
    for capability, number in (("8.7", "87"), ("12.0", "120")):
        digest = sha256(f"cubin for {capability}".encode()).hexdigest()
        assert re.fullmatch(rf"kernels/sm_{number}-[0-9a-f]{{8,}}\.cubin", names[capability])
        assert digest.startswith(names[capability].partition("-")[2].removesuffix(".cubin"))


def test_other_contents_get_another_name_and_equal_ones_the_same(bundle: Bundle) -> None:
    first = add_kernels(bundle, compiled_for("8.7"))
    second = add_kernels(first, compiled_for("8.7", salt=" again"))
    third = add_kernels(second, compiled_for("8.7"))
    assert kernels_of(first).cubins != kernels_of(second).cubins
    assert kernels_of(first) == kernels_of(third)


def test_replaced_cubins_are_gone_from_disk_and_manifest(bundle: Bundle) -> None:
    first = add_kernels(bundle, compiled_for("7.5", "8.7", "9.0"))
    second = add_kernels(first, compiled_for("8.7", "12.0", salt=" again"))
    assert _cubin_files(bundle.path) == set(kernels_of(second).cubins.values())
    assert set(kernels_of(second).cubins) == {"8.7", "12.0"}
    listed = {name for name in second.manifest.files if name.endswith(".cubin")}
    assert listed == _cubin_files(bundle.path)
    assert second.damage() == {}


def test_a_subset_keeps_its_files_and_drops_the_rest(bundle: Bundle) -> None:
    first = add_kernels(bundle, compiled_for("7.5", "8.7"))
    second = add_kernels(first, compiled_for("8.7"))
    assert kernels_of(second).cubins == {"8.7": kernels_of(first).cubins["8.7"]}
    assert _cubin_files(bundle.path) == {kernels_of(first).cubins["8.7"]}


def test_other_files_in_the_folder_are_left_alone(bundle: Bundle) -> None:
    first = add_kernels(bundle, compiled_for("8.7"))
    (bundle.path / "kernels" / "notes.txt").write_text("mine")
    add_kernels(first, compiled_for("8.7", salt=" again"))
    assert (bundle.path / "kernels" / "notes.txt").read_text() == "mine"


def test_the_cpu_generates_whatever_the_kernels_are_like(bundle: Bundle) -> None:
    added = add_kernels(bundle, compiled_for("8.7"))
    (bundle.path / kernels_of(added).cubins["8.7"]).unlink()
    with Generator.open(bundle.path, threads=1) as generator:
        assert generator.generate(class_ids=[0], steps=1).images.shape == (1, 8, 8, 3)
    assert list(inspect(Bundle.read(bundle.path)).damage.values()) == ["is missing"]
