"""Families: which are known, how others become so, and what a bundle's model is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.toy.family import ToyFamily

from fewstep.runtime import families
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError
from fewstep.runtime.families import family_of, kinds, model_of, register
from fewstep.runtime.generator import Generator


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """Leave the families as they were."""
    before = dict(families._registered)
    yield
    families._registered.clear()
    families._registered.update(before)


def test_families_are_found_by_their_folders() -> None:
    families._registered.clear()
    assert "masked" in kinds()
    assert family_of("masked").kind == "masked"
    assert family_of("masked") is family_of("masked")


def test_an_unknown_kind_is_told_with_those_there_are() -> None:
    with pytest.raises(BundleError, match="unknown kind of model 'maskd'.*Did you mean 'masked'"):
        family_of("maskd")


def test_a_family_from_elsewhere_registers_itself() -> None:
    families._registered.pop("toy", None)
    with pytest.raises(BundleError, match="unknown kind of model 'toy'"):
        family_of("toy")
    toy = ToyFamily()
    register(toy)
    assert family_of("toy") is toy
    assert {"masked", "toy"} <= set(kinds())


def test_a_model_has_the_arrays_that_its_family_needs(
    tiny_bundle: Path, tiny_text_bundle: Path
) -> None:
    classes, text = (model_of(Bundle.read(each)) for each in (tiny_bundle, tiny_text_bundle))
    assert classes.arrays["unconditional"] == np.array(5, np.int32)
    empty = np.load(tiny_text_bundle / "unconditional.npz")["text"]
    np.testing.assert_array_equal(text.arrays["unconditional"], empty)
    assert classes.graphs.keys() == {"transformer", "policy", "decoder"}


def test_a_model_may_be_of_engines(generator: Generator) -> None:
    model = model_of(generator.bundle, generator.engines)
    assert model.graphs == generator.engines
    assert model.info == generator.bundle.manifest.model


def test_a_damaged_file_of_a_family_is_told(tiny_text_bundle: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(tiny_text_bundle, tmp_path / "copy")
    bundle = Bundle.read(copy)
    (copy / "unconditional.npz").write_bytes(b"")
    with pytest.raises(BundleError, match="unconditional.npz"):
        model_of(bundle)


def test_shared_code_imports_no_family() -> None:
    """All but the families' own folders, and the modules of their forms."""
    root = Path(__file__).parents[3]
    shared = [*(root / "runtime").rglob("*.py"), *(root / "calibration").rglob("*.py")]
    shared += [
        *(root / "export/fewstep/build").rglob("*.py"),
        root / "export/fewstep/export/tuned.py",
    ]
    own = root / "runtime/fewstep/runtime/families"
    wanted = re.compile(rf"families\.({'|'.join(kinds())})\b.* import ")
    found = [path for path in shared if own not in path.parents and wanted.search(path.read_text())]
    assert len(shared) > 100
    assert found == []
