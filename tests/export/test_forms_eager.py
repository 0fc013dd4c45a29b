"""The authors' loops that ``tests.benchmarks.forms`` times: the passes that they make, how many
tokens are still masked before each; and that text-conditional forms are prepared for both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny, tiny_amused, tiny_forms
from tests.benchmarks import forms, forms_eager
from tests.benchmarks.forms_networks import FORMS, Form
from tests.masked import masked_model
from torch import Tensor, nn

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families.masked.model import MaskedPolicyInfo


def _small(form: Form) -> Form:
    """The same with 4 × 4 tokens of 24 codes."""
    if form.name == "amused":
        return replace(
            form,
            arguments=tiny_amused.TRANSFORMER,
            tokenizer_arguments=tiny_amused.TOKENIZER,
            text_encoder=tiny_amused.TEXT,
        )
    if form.policy:
        told = tiny.TEXT if form.name == "adanat" else tiny.CLASSES
        return replace(
            form,
            arguments=tiny.TRANSFORMER | told,
            tokenizer_arguments=tiny.TOKENIZER,
            policy=tiny.POLICY,
        )
    own = tiny_forms.FORMS[form.name]
    return replace(
        form, arguments=own.transformer_arguments, tokenizer_arguments=own.tokenizer_arguments
    )


_SMALL = {form.name: _small(form) for form in FORMS}
_STATES = {"adanat": (2, 3, 12), "amused": (2, 8, 12)}


def _decoded(form: Form) -> tuple[list[Tensor], Tensor, Tensor]:
    """Tokens of every pass, those that are decoded, and the image."""
    networks, passes, final = form.networks(), list[Tensor](), list[Tensor]()
    transformer, tokenizer = (
        forms_eager.fused(networks[each]) for each in ("transformer", "tokenizer")
    )
    # maskgit-torch calls another method, so what is recorded are the first layer's rows.
    first = next(each for each in transformer.modules() if isinstance(each, nn.Embedding))
    first.register_forward_pre_hook(lambda _, given: passes.append(given[0]))
    tokenizer.register_forward_pre_hook(lambda _, given: final.append(given[0]))
    more: dict[str, Any] = {}
    if form.policy:
        more = {"policy": networks["policy"], "info": MaskedPolicyInfo(residual=True)}
    condition: Any = torch.randn(_STATES[form.name]) if form.name in _STATES else 1
    image = form.decode(transformer, tokenizer, condition, **more)
    assert isinstance(image, Tensor)
    return passes, final[0], image


@pytest.mark.parametrize("form", _SMALL.values(), ids=_SMALL)
def test_passes_are_those_of_the_authors(form: Form) -> None:
    passes, final, image = _decoded(form)
    count, rows = map(int, form.passes.split(" × "))
    assert [len(each) for each in passes] == [rows] * count
    assert final.shape == (1, 16)
    assert ((final >= 0) & (final < 24 + (form.name == "halton"))).all()  # which samples the mask
    assert image.shape[:2] == (1, 3)
    assert ((image >= 0) & (image <= 1)).all()


def test_amused_masks_as_many_as_its_scheduler() -> None:
    """⌊16·cos(π/2·t/12)⌋ in float32, but one less than before at most and one at least."""
    passes, _, _ = _decoded(_SMALL["amused"])
    expected = [16]
    for step in range(1, 12):
        part = np.cos(np.float32(step / 12) * np.float32(np.pi / 2), dtype=np.float32)
        expected.append(max(1, min(expected[-1] - 1, int(np.float32(16) * part))))
    mask = tiny_amused.TRANSFORMER["vocab_size"] - 1
    for each, masked in zip(passes, expected, strict=True):
        assert ((each == mask).flatten(1).sum(1) == masked).all()
        torch.testing.assert_close(each[0], each[1])


@pytest.mark.parametrize("name", _STATES)
def test_forms_with_texts_are_prepared_for_both_sides(
    name: str, tmp_path: Path, quick: None
) -> None:
    path, loop = forms.prepared(_SMALL[name], tmp_path / name)
    loop()
    info = masked_model(Bundle.read(path))
    expected = {"adanat": (8, "policy"), "amused": (12, "cosine")}
    assert (info.defaults.steps, info.defaults.schedule) == expected[name]
    assert (info.condition.length, info.condition.width) == _STATES[name][1:]  # type: ignore[union-attr]
