"""Optimization profiles: the batches that engines accept are those that the decode loop binds."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.build.profiles import Profile, profiles
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.manifest import BuildOptions, ShapeRange, TensorInfo


def _profiles(path: Path, name: str, options: BuildOptions) -> tuple[Profile, ...]:
    bundle = Bundle.read(path)
    return profiles(name, bundle.graph(name), options)


def _batches(shapes: ShapeRange) -> tuple[int, int, int]:
    return shapes.min[0], shapes.opt[0], shapes.max[0]


@pytest.mark.parametrize("best", [1, 3, 5])
def test_guidance_doubles_the_rows_of_the_transformer_only(tiny_bundle: Path, best: int) -> None:
    options = BuildOptions(max_batch=5, opt_batch=(best,))
    found = {
        name: {input: _batches(shapes) for input, shapes in profile.items()}
        for name in Bundle.read(tiny_bundle).manifest.graphs
        for profile in _profiles(tiny_bundle, name, options)
    }
    assert found == {
        # Images without guidance are single rows, so the range starts at 1 all the same.
        "transformer": {"tokens": (1, 2 * best, 10), "condition": (1, 2 * best, 10)},
        "policy": {"features": (1, best, 5), "step": (1, best, 5)},
        "decoder": {"tokens": (1, best, 5)},
    }


def test_only_the_batch_varies(tiny_text_bundle: Path) -> None:
    (found,) = _profiles(tiny_text_bundle, "transformer", BuildOptions(max_batch=2))
    assert found == {
        "tokens": ShapeRange(min=(1, 16), opt=(2, 16), max=(4, 16)),
        "text": ShapeRange(min=(1, 3, 12), opt=(2, 3, 12), max=(4, 3, 12)),
    }


def test_a_profile_for_every_batch_to_tune_for(tiny_bundle: Path) -> None:
    options = BuildOptions(max_batch=8, opt_batch=(1, 4, 8))
    found = [_batches(each["tokens"]) for each in _profiles(tiny_bundle, "decoder", options)]
    assert found == [(1, 1, 8), (1, 4, 8), (1, 8, 8)]


def test_inputs_of_one_shape_have_no_range(tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    graph = bundle.graph("decoder")
    fixed = TensorInfo(dtype="int32", shape=(2, 16))
    mixed = graph.model_copy(update={"inputs": graph.inputs | {"fixed": fixed}})
    (profile,) = profiles("decoder", mixed, BuildOptions())
    assert profile.keys() == {"tokens"}
