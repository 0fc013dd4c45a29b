"""Prompts: their ids, their states and what is kept of them, negative ones, and bad ones."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.prompts import TOKENS, table, with_encoder

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import TextEncoder
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError, FewstepWarning, RequestError
from fewstep.runtime.families import family_of, model_of
from fewstep.runtime.generator import Generator
from fewstep.runtime.observe import observe
from fewstep.runtime.prompts import MOST_KEPT, TextStates, Tokenizer, read_prompts

_DOG, _CAT = [1, 4, 7, 2, 0, 0], [1, 5, 8, 2, 0, 0]


@pytest.fixture(scope="module")
def prompts_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The text bundle with an encoder."""
    from tests.exported import copy_of

    return with_encoder(copy_of("tiny-text", tmp_path_factory.mktemp("prompts") / "bundle"))


@pytest.fixture(scope="module")
def generator(prompts_bundle: Bundle) -> Generator:
    """On the CPU."""
    return Generator.open(prompts_bundle, backend="onnxruntime", max_batch=3)


def _states(*ids: list[int]) -> Array:
    """What the encoder gives, by its definition."""
    found: Array = np.stack([table(3, 12)[each].mean(0) for each in ids])
    return found


def test_ids_are_padded_and_any_case_is_one(prompts_bundle: Bundle) -> None:
    model = model_of(prompts_bundle)
    assert model.tokenizer is not None
    ids = model.tokenizer.ids(["A dog", "red CAT"])
    assert ids.dtype == np.int32 and ids.tolist() == [_DOG, _CAT]


def test_long_prompts_are_cut_with_a_note_and_keep_their_end(prompts_bundle: Bundle) -> None:
    model = model_of(prompts_bundle)
    assert model.tokenizer is not None
    with pytest.warns(FewstepWarning, match="more than 6 tokens.* not read: 'cat green'"):
        ids = model.tokenizer.ids(["a red dog a cat green"])
    assert ids.tolist() == [[1, 4, 5, 7, 4, 2]]
    with pytest.warns(FewstepWarning) as said:
        model.tokenizer.ids(["dog " * 2_500])
    assert len(str(said[0].message)) < 300
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.tokenizer.ids(["a red dog a"])  # exactly as many as there may be


def test_images_of_prompts_are_those_of_their_states(generator: Generator) -> None:
    of_prompts = generator.generate(text=["a dog", "red cat", "a dog", "a dog"], seed=5, steps=3)
    states = _states(_DOG, _CAT, _DOG, _DOG)
    of_states = generator.generate(text=states, seed=5, steps=3)
    np.testing.assert_array_equal(of_prompts.images, of_states.images)
    one = generator("a dog", seed=8, steps=3)
    np.testing.assert_array_equal(one.result.images[0], of_prompts.images[3])
    assert generator(["a dog", "red cat"], count=2, steps=1).labels[2:] == ("red cat", "red cat")


def test_a_program_that_encodes_gives_the_same_tokens(generator: Generator) -> None:
    """What verify, profiles and calibration walk through, against what generation runs."""
    family, model = generator.family, generator.model
    for guidance in (0.0, 2.0):
        request = generator.request(text=["a dog", "red cat"], seed=1, steps=2, guidance=guidance)
        assert request.condition.dtype == np.int32
        key = family.key(model, request, 2, constants=False)
        program = family.program(model, key)
        inputs = family.inputs(model, request, slice(0, 2))
        calls = list(observe(program, generator.device, generator.engines, inputs))
        assert [call.graph for call in calls][:2] == ["text_encoder", "transformer"]
        np.testing.assert_allclose(calls[0].outputs["text"], _states(_DOG, _CAT), atol=1e-6)
        wanted = generator.run(request).trace.final
        np.testing.assert_array_equal(calls[-1].inputs["tokens"], wanted)


def test_negative_prompts_take_the_place_of_the_empty_text(generator: Generator) -> None:
    asked: dict[str, Any] = {"text": ["a dog", "red cat"], "seed": 3, "steps": 3, "guidance": 3.0}
    usual = generator.generate(**asked)
    empty = generator.model.arrays["unconditional"]
    same = generator.generate(**asked, negative=empty)
    np.testing.assert_array_equal(same.images, usual.images)
    np.testing.assert_array_equal(generator.generate(**asked, negative=" ").images, usual.images)
    other = generator.generate(**asked, negative="green dog")
    states = generator.generate(**asked, negative=_states([1, 6, 7, 2, 0, 0])[0])
    np.testing.assert_array_equal(other.images, states.images)
    assert (other.trace.tokens != usual.trace.tokens).any()
    # A prompt that leads away from itself is a prompt without guidance.
    alone = generator.generate(text=["a dog"], negative="a dog", steps=3, guidance=3.0, seed=3)
    plain = generator.generate(text=["a dog"], steps=3, guidance=0, seed=3)
    np.testing.assert_array_equal(alone.images, plain.images)


def test_states_are_made_once_for_every_prompt() -> None:
    made: list[list[int]] = []

    def encode(ids: Array) -> Array:
        made.extend(ids.tolist())
        return ids[:, :, None].astype(np.float32)

    states = TextStates()
    rows = np.arange(2 * MOST_KEPT, dtype=np.int32).reshape(-1, 2)
    found = states.of(rows[[0, 1, 0]], encode)
    np.testing.assert_array_equal(found[:, :, 0], rows[[0, 1, 0]])
    assert made == rows[:2].tolist()
    states.of(rows, encode)
    assert len(made) == len(rows)
    states.of(rows[:1], encode)  # so the second is the oldest now
    states.of(np.array([[-1, -1]], np.int32), encode)
    states.of(rows[:1], encode)
    assert len(made) == len(rows) + 1
    states.of(rows[1:2], encode)
    assert len(made) == len(rows) + 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the text is empty: say what to draw"),
        (["a dog", "  \n"], "the text is empty: say what to draw"),
        ("\ud800", "is no Unicode text"),
        (["a dog", 3], "prompts must be text, got 3"),
        (np.zeros((1, 5), np.int32), r"must be at least 0 in shape \[B, 6\], got \[1, 5\]"),
        (np.full((1, 6), -1), r"got \[1, 6\] from -1"),
        ([], "text must have a prompt at least, got none"),
        (3, r"text must be prompts, or states \[B, 3, 12\], got 3"),
        ([["a dog"]], r"text must be prompts, or states \[B, 3, 12\], got \[\['a dog'\]\]"),
        (b"a dog", "got b'a dog'"),
        ([np.nan] * 99, r"got \[nan, nan, .*…$"),
        (None, "nothing to generate"),
    ],
)
def test_bad_texts_are_refused(generator: Generator, text: Any, said: str) -> None:
    for generate in (lambda: generator.generate(text=text), lambda: generator(text)):
        with pytest.raises(RequestError, match=said) as caught:
            generate()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_arrays_of_prompts_are_prompts(generator: Generator) -> None:
    for prompts in (["a dog", "red cat"], ("a dog", "red cat"), np.array(["a dog", "red cat"])):
        request = generator.request(text=prompts)
        assert request.condition.tolist() == [_DOG, _CAT]
    with pytest.raises(RequestError, match="expected 1 seeds"):  # a text without dimensions is one
        generator.request(text=np.array("a dog"), seed=[1, 2])


@pytest.mark.parametrize(
    ("negative", "said"),
    [
        (["a", "b"], r"one prompt, of all images, got \['a', 'b'\]: join several to one"),
        ([], r"one prompt, of all images, got \[\]"),
        ([None, "a"], r"one prompt, of all images, got \[None, 'a'\]"),
        (3, r"negative must be a prompt, or states \[3, 12\], got 3"),
        ({"a": 1}, "negative must be a prompt, or states"),
        ([[1.0], [2.0, 3.0]], "negative must be a prompt, or states"),
        (np.array([None]), "negative must be a prompt, or states"),
        (np.zeros((2, 3, 12)), r"negative must have shape \[3, 12\], got \[2, 3, 12\]"),
        (np.zeros((3, 11)), r"negative must have shape \[3, 12\], got \[3, 11\]"),
        (np.zeros((3, 12), int), "negative must hold finite floats, got int64"),
        (np.full((3, 12), np.nan), "negative must hold finite floats: 36 of 36 are NaN"),
        (np.zeros(5, int), r"ids of negative must be at least 0 in shape \[6\], got \[5\]"),
        ("\ud800", "is no Unicode text"),
    ],
)
def test_bad_negatives_are_refused(generator: Generator, negative: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        generator.request(text=["a dog", "red cat"], negative=negative)
    assert "\n" not in str(caught.value)


def test_arguments_of_diffusers_are_told_by_their_names_here(generator: Generator) -> None:
    said = r"got arguments of diffusers; here prompt is {}; negative_prompt is negative"
    theirs: dict[str, Any] = {"prompt": "a dog", "negative_prompt": "snow"}
    with pytest.raises(RequestError, match=said.format("text")):
        generator.generate(**theirs)
    with pytest.raises(RequestError, match=said.format("the first argument of a call")):
        generator(**theirs)
    said = r"num_inference_steps is steps; guidance_scale is guidance \(1 less: its 10 is 9\)"
    with pytest.raises(RequestError, match=said):
        generator("a dog", num_inference_steps=12, guidance_scale=10.0)
    with pytest.raises(RequestError, match="num_images_per_prompt is count; generator is seed"):
        generator("a dog", num_images_per_prompt=2, generator=None)
    with pytest.raises(RequestError, match="text is for generate: here it is the first argument"):
        generator(text="a dog")
    with pytest.raises(RequestError, match="nothing to generate: give a prompt, or several"):
        generator()
    with pytest.raises(RequestError, match="unknown setting 'promt'"):
        generator("a dog", promt="a dog")


@pytest.mark.parametrize("edit", [[1], {"given": [[1], [1, 2]], "mask": [[1]]}])
def test_what_is_kept_has_to_be_arrays(generator: Generator, edit: Any) -> None:
    with pytest.raises(RequestError, match="^tokens to keep"):
        generator.request(text="a dog", edit=edit)


def test_negative_without_an_encoder_is_states(tiny_text_bundle: Path) -> None:
    states = np.zeros((1, 3, 12), np.float32)
    with (
        Generator.open(tiny_text_bundle, backend="onnxruntime") as generator,
        pytest.raises(RequestError, match=r"no text encoder: give negative as states \[3, 12\]"),
    ):
        generator.request(text=states, negative="snow")


def test_a_bundle_without_an_encoder_asks_for_states(tiny_text_bundle: Path) -> None:
    with (
        Generator.open(tiny_text_bundle, backend="onnxruntime") as generator,
        pytest.raises(RequestError, match=r"no text encoder: give text states \[B, 3, 12\]"),
    ):
        generator("a dog")


def test_classes_have_no_negative(tiny_bundle: Path) -> None:
    with (
        Generator.open(tiny_bundle, backend="onnxruntime") as generator,
        pytest.raises(RequestError, match="negative is for text-conditional bundles"),
    ):
        generator.generate(class_ids=[1], negative="rain")


def test_a_damaged_tokenizer_is_said(tmp_path: Path) -> None:
    encoder = TextEncoder(tokens=TOKENS, pad_id=0, examples=((1, 2),))
    (tmp_path / "tokenizer.json").write_text("{}")

    class Damaged:
        def verified(self, name: str) -> Path:
            return tmp_path / name

    with pytest.raises(BundleError, match="is no tokenizer of the tokenizers library"):
        Tokenizer(Damaged(), encoder).ids(["a dog"])  # type: ignore[arg-type]


def test_prompts_of_a_file_are_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa dog\r\n\n  ein Hündchen \n", encoding="utf-8")
    assert read_prompts(path) == ["a dog", "ein Hündchen"]
    for content, said in ((b"", "no prompt"), (b"\xff\xfe", "not UTF-8"), (None, "No such file")):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(RequestError, match=said):
            read_prompts(path)


def test_the_encoder_is_part_of_every_corner(prompts_bundle: Bundle) -> None:
    family, model = family_of("masked"), model_of(prompts_bundle)
    for key in family.corners(model, 2):
        runs = [run.graph for run, _ in family.program(model, key).runs()]
        assert runs.count("text_encoder") == 1
