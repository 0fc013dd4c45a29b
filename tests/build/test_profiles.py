"""Optimization profiles: the shapes of the family's programs, and none beside them.

Independent references: the rows that MaskGIT's loop needs, said by hand; and shapes that vary in
several dimensions, of the toy family, by hand too.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.build.profiles import profiles
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.records import BuildOptions

_TOKENS = 16  # of the tiny bundles


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.read(tiny_bundle)


def test_the_transformer_runs_twice_as_many_rows_as_images(bundle: Bundle) -> None:
    (profile,) = profiles(bundle, BuildOptions(max_batch=6, opt_batch=(2,)))["transformer"]
    tokens, condition = profile["tokens"], profile["condition"]
    assert (tokens.min, tokens.opt, tokens.max) == ((1, _TOKENS), (4, _TOKENS), (12, _TOKENS))
    assert (condition.min, condition.opt, condition.max) == ((1,), (4,), (12,))


@pytest.mark.parametrize("graph", ["policy", "decoder"])
def test_other_graphs_run_a_row_an_image(bundle: Bundle, graph: str) -> None:
    (profile,) = profiles(bundle, BuildOptions(max_batch=6, opt_batch=(2,)))[graph]
    rows = {(each.min[0], each.opt[0], each.max[0]) for each in profile.values()}
    assert rows == {(1, 2, 6)}


def test_there_is_one_profile_for_every_batch_to_tune_for(bundle: Bundle) -> None:
    made = profiles(bundle, BuildOptions(max_batch=8, opt_batch=(1, 4, 8)))
    assert made.keys() == bundle.manifest.graphs.keys()
    assert [each["tokens"].opt[0] for each in made["decoder"]] == [1, 4, 8]
    assert {each["tokens"].max[0] for each in made["decoder"]} == {8}


def test_a_bundle_without_guidance_needs_no_second_half(bundle: Bundle) -> None:
    """Text states without those of the empty text cannot be guided."""
    text = {"kind": "text", "length": 3, "width": 5}
    fields = bundle.manifest.model_dump()
    fields["model"] |= {"condition": text, "policies": {}}
    graphs = {name: fields["graphs"][name] for name in ("transformer", "decoder")}
    inputs = graphs["transformer"]["inputs"]
    inputs["text"] = {"dtype": "float32", "shape": ("batch", 3, 5)}
    del inputs["condition"]
    changed = type(bundle.manifest).model_validate(fields | {"graphs": graphs})
    (profile,) = profiles(Bundle(bundle.path, changed), BuildOptions(max_batch=6))["transformer"]
    assert (profile["tokens"].min[0], profile["tokens"].max[0]) == (1, 6)
    assert profile["text"].max == (6, 3, 5)


def test_a_text_encoder_reads_a_text_for_every_image(tiny_text_bundle: Path) -> None:
    read = Bundle.read(tiny_text_bundle)
    fields = read.manifest.model_dump()
    fields["model"]["condition"]["encoder"] = {"tokens": 7, "pad_id": 0, "examples": [[1]]}
    fields["graphs"]["text_encoder"] = {
        "file": "transformer.onnx",
        "inputs": {"ids": {"dtype": "int32", "shape": ("batch", 7)}},
        "outputs": {"text": {"dtype": "float32", "shape": ("batch", 3, 12)}},
    }
    fields["files"]["tokenizer.json"] = {"bytes": 2, "sha256": "0" * 64}
    bundle = Bundle(read.path, type(read.manifest).model_validate(fields))
    (profile,) = profiles(bundle, BuildOptions(max_batch=6, opt_batch=(2,)))["text_encoder"]
    ids = profile["ids"]
    assert (ids.min, ids.opt, ids.max) == ((1, 7), (2, 7), (6, 7))
    del fields["files"]["tokenizer.json"]
    with pytest.raises(ValueError, match="files lacks tokenizer.json"):
        type(read.manifest).model_validate(fields)


def test_every_dimension_that_varies_has_its_own_range(toy_bundle: Path) -> None:
    """Two scales of 1 and 4 tokens, with a cache of 0 and 1 positions before them."""
    made = profiles(Bundle.read(toy_bundle), BuildOptions(max_batch=3, opt_batch=(2,)))
    (trunk,), (decoder,) = made["trunk"], made["decoder"]
    codes, past = trunk["codes"], trunk["past"]
    assert (codes.min, codes.opt, codes.max) == ((1, 1), (4, 4), (6, 4))
    assert (past.min[:2], past.opt[:2], past.max[:2]) == ((0, 1), (1, 4), (1, 6))
    assert decoder["tokens"].max == (3, 4)
