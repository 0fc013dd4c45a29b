"""State dicts inside what training scripts save around them: found whole, and said.

Every file here holds the weights of a tiny model somewhere; what is loaded has to be those numbers
exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.wrapped import ARGUMENTS, VQGAN, State, read, weights
from torch import nn

from fewstep.export import presets, wrappers
from fewstep.export.checkpoint import Checkpoint, Content
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.wrappers import Wanted
from fewstep.runtime.errors import CheckpointError


def before(prefix: str, state: State) -> State:
    return {prefix + key: each for key, each in state.items()}


def assert_loaded(model: nn.Module, expected: State) -> None:
    found = model.state_dict()
    assert found.keys() == {key for key in expected if not key.startswith("encoder.")} or (
        found.keys() == expected.keys()
    )
    for key, each in found.items():
        assert torch.equal(each, expected[key]), key


OPTIMIZER = {
    "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}},
    "param_groups": [],
}

WRAPPED: dict[str, tuple[Callable[[State], object], str]] = {
    "plain": (lambda state: state, ""),
    "DDP": (lambda state: before("module.", state), "removed the prefix module."),
    "compiled": (lambda state: before("_orig_mod.", state), "removed the prefix _orig_mod."),
    "compiled, DDP": (
        lambda state: before("module._orig_mod.", state),
        "removed the prefix module._orig_mod.",
    ),
    "DDP, compiled, twice": (
        lambda state: before("_orig_mod.module.module.", state),
        "removed the prefix _orig_mod.module.module.",
    ),
    "Lightning": (
        lambda state: {"state_dict": before("model.", state), "epoch": 1, "callbacks": {}},
        "removed the prefix model.",
    ),
    "Lightning, compiled": (
        lambda state: {"state_dict": before("model._orig_mod.", state)},
        "removed the prefix model._orig_mod.",
    ),
    "model": (
        lambda state: {"model": state, "optimizer": OPTIMIZER, "epoch": 3},
        "took what is under model",
    ),
    "model_state_dict": (
        lambda state: {"model_state_dict": state, "iter": 1},
        "took what is under model_state_dict",
    ),
    "nested": (
        lambda state: {"state_dict": {"model": before("module.", state)}},
        "took what is under state_dict.model",
    ),
    "net": (lambda state: {"net": state, "acc": 0.5}, "took what is under net"),
    "module": (lambda state: {"module": state}, "took what is under module"),
    "params_ema": (lambda state: {"params_ema": state}, "took what is under params_ema"),
    "any name": (lambda state: {"Generator v2": state}, "took what is under Generator v2"),
    "the same twice": (lambda state: {"model": state, "best": state}, "of 2 sets of weights"),
    "AveragedModel": (
        lambda state: before("module.", state) | {"n_averaged": torch.tensor(5)},
        "removed the prefix module.",
    ),
    "a wrapper within": (
        lambda state: {re.sub(r"^([^.]+)\.", r"\1._orig_mod.", key): v for key, v in state.items()},
        "removed _orig_mod from within keys",
    ),
    "FSDP": (
        lambda state: before(
            "_fsdp_wrapped_module.",
            {re.sub(r"^([^.]+)\.", r"\1._fsdp_wrapped_module.", k): v for k, v in state.items()},
        ),
        "_fsdp_wrapped_module",
    ),
    "parameters": (lambda state: {k: nn.Parameter(v) for k, v in state.items()}, ""),
    "numbers beside": (lambda state: state | {"fid": np.float64(3.2), "epoch": 7}, ""),
    "a number in a tensor": (lambda state: state | {"epoch": torch.tensor(7)}, "epoch"),
    "losses": (
        lambda state: {"state_dict": state | {"loss.lpips.net.0.weight": torch.ones(2)}},
        "left out 1 tensor beside them (loss.*)",
    ),
}


@pytest.mark.parametrize("kind", [UViT, PolicyNet, VQModel])
@pytest.mark.parametrize("form", WRAPPED)
def test_every_wrapping_is_removed_and_said(
    form: str, kind: type[nn.Module], tmp_path: Path
) -> None:
    wrap, note = WRAPPED[form]
    state = weights(kind)
    model, found = read(kind, wrap(state), tmp_path)
    assert_loaded(model, state)
    assert note in "; ".join(found.notes)


AVERAGED: dict[str, Callable[[State, State], object]] = {
    "model_ema": lambda raw, ema: {"model": raw, "model_ema": ema, "epoch": 1},
    "ema": lambda raw, ema: {"ema": before("module.", ema), "net": raw},
    "state_dict_ema": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
    "params_ema": lambda raw, ema: {"params": raw, "params_ema": ema},
    "shadow": lambda raw, ema: {"model": raw, "ema": {"decay": 0.9, "shadow": ema}},
    "modelEMA": lambda raw, ema: {"model": raw, "modelEMA": ema},
    "prefixes": lambda raw, ema: before("model.", raw) | before("ema_model.", ema),
    "beside plain keys": lambda raw, ema: raw | before("model_ema.module.", ema),
    "Lightning": lambda raw, ema: {
        "state_dict": before("model.", raw) | before("model_ema.", ema),
    },
    "LitEma": lambda raw, ema: {
        "state_dict": raw
        | {f"model_ema.{key.replace('.', '')}": each for key, each in ema.items()}
        | {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
    },
    "LitEma of a module": lambda raw, ema: {
        "state_dict": before("model.", raw)
        | {f"model_ema.model{key.replace('.', '')}": each for key, each in ema.items()}
    },
}


@pytest.mark.parametrize("kind", [UViT, PolicyNet, VQModel])
@pytest.mark.parametrize("form", AVERAGED)
def test_averages_are_preferred_and_said(form: str, kind: type[nn.Module], tmp_path: Path) -> None:
    raw, ema = weights(kind), weights(kind, seed=1)
    model, found = read(kind, AVERAGED[form](raw, ema), tmp_path)
    assert_loaded(model, ema)
    assert "the averaged weights (EMA), of 2 sets of weights" in "; ".join(found.notes)


def test_a_model_whose_name_has_ema_in_it_is_no_average() -> None:
    for name in ("schema", "cinema_net", "emanet", "remade"):
        assert not wrappers.is_ema(name)
    for name in ("ema", "EMA", "model_ema", "ema_0.9999", "nnet_ema", "netEMA", "ema-model"):
        assert wrappers.is_ema(name)


def test_what_an_average_lacks_is_taken_from_the_weights_and_said(tmp_path: Path) -> None:
    """What is frozen is in no average."""
    raw, ema = weights(UViT), weights(UViT, seed=1)
    frozen = "token_emb.word_embeddings.weight"
    del ema[frozen]
    model, found = read(UViT, {"model": raw, "model_ema": ema}, tmp_path)
    assert_loaded(model, ema | {frozen: raw[frozen]})
    assert "took 1 tensor that it lacks from model" in found.notes


def test_different_weights_without_a_telling_name_are_refused(tmp_path: Path) -> None:
    content = {"student": weights(UViT), "teacher": weights(UViT, seed=1)}
    with pytest.raises(CheckpointError, match=r"2 different sets .*\(student, teacher\).* alone"):
        read(UViT, content, tmp_path)


def test_prefixes_are_judged_by_the_keys_that_remain() -> None:
    """A model's own keys may begin with what wrappers begin with."""

    def found(keys: list[str], expected: list[str]) -> Checkpoint:
        tree = {key: torch.full((1,), float(row)) for row, key in enumerate(keys)}
        checkpoint = wrappers.find(Path("x"), Content(tree), Wanted(frozenset(expected)))
        assert checkpoint is not None
        return checkpoint

    own = ["module.weight", "model.weight", "model.module.bias", "_orig_mod.bias"]
    kept = found(own, own)
    assert list(kept.tensors) == own
    assert kept.notes == ()
    assert set(found([f"module.{key}" for key in own], own).tensors) == set(own)
    assert set(found([f"model.{key}" for key in own], own).tensors) == set(own)


def test_what_the_model_has_not_is_not_hidden(tmp_path: Path) -> None:
    """Only what is known to be beside weights is left out."""
    state = weights(UViT) | {"surplus.weight": torch.ones(2)}
    for content in (state, {"state_dict": before("module.", state)}):
        with pytest.raises(CheckpointError, match=r"1 unexpected: surplus.weight"):
            read(UViT, content, tmp_path)


# --- the tokenizer: what is never exported


@pytest.mark.parametrize(
    "extra",
    [
        {"quantize.cluster_size": torch.zeros(5), "quantize.embed_avg": torch.zeros(5, 32)},
        {"quantize.embedding.cluster_size": torch.zeros(5)},
        {"quant_conv.weight": torch.zeros(32, 32, 1, 1), "quant_conv.bias": torch.zeros(32)},
        {"encoder.mid.attn_1.q.weight": torch.zeros(32, 32, 1, 1)},
        {"loss.discriminator.main.0.weight": torch.zeros(3), "loss.logvar": torch.zeros(())},
    ],
    ids=["statistics", "statistics of the embedding", "quant_conv", "encoder", "loss"],
)
def test_a_tokenizer_may_hold_more(extra: State, tmp_path: Path) -> None:
    state = weights(VQModel)
    assert_loaded(read(VQModel, state | extra, tmp_path)[0], state)


def test_a_tokenizer_may_lack_its_encoder_and_gives_the_same_images(tmp_path: Path) -> None:
    state = weights(VQModel)
    whole = VQModel(**VQGAN).eval()
    whole.load_state_dict(state)
    decoder = {key: each for key, each in state.items() if not key.startswith("encoder.")}
    partly = decoder | {"encoder.conv_in.weight": state["encoder.conv_in.weight"]}
    tokens = torch.tensor([[0, 1, 2, 4]])
    for content in (decoder, partly):
        model = read(VQModel, content, tmp_path)[0]
        with torch.no_grad():
            assert torch.equal(model(tokens), whole(tokens))


def test_a_convolution_before_the_decoder_is_refused(tmp_path: Path) -> None:
    """Images would be wrong without it."""
    state = weights(VQModel) | {"post_quant_conv.weight": torch.zeros(32, 32, 1, 1)}
    with pytest.raises(CheckpointError, match=r"1 unexpected: post_quant_conv.weight"):
        read(VQModel, state, tmp_path)


# --- the policy: PPO's actor and critic


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": before("policy_old.actor.", state)},
        lambda state: {"model": before("module.policy_old.actor.", state)},
        lambda state: {"model": before("policy_old.module.actor._orig_mod.", state)},
        lambda state: before("actor.", state),
        lambda state: {"state_dict": before("actor.", state)},
    ],
    ids=["train.py", "DDP", "DDP within", "PPO.save()", "Lightning"],
)
def test_the_actor_is_taken_not_the_critic(
    wrap: Callable[[State], dict[str, Any]], tmp_path: Path
) -> None:
    state, critic = weights(PolicyNet), weights(PolicyNet, seed=1)
    critic["linear3.weight"], critic["linear3.bias"] = torch.ones(1, 512), torch.ones(1)
    content = wrap(state)
    inside = next((each for each in content.values() if isinstance(each, dict)), content)
    inside |= {
        key.replace("actor", "critic"): critic[name]
        for key, name in zip(list(inside), critic, strict=True)
    }
    model, found = read(PolicyNet, content, tmp_path)
    assert_loaded(model, state)
    assert "critic" not in "; ".join(found.notes[:-1])


def test_a_network_without_anything_around_it_may_be_another_paper_s(tmp_path: Path) -> None:
    found = read(PolicyNet, weights(PolicyNet), tmp_path)[1]
    assert "AdaGen" in "; ".join(found.notes)


def test_messages_stay_short(tmp_path: Path) -> None:
    state = {f"{'x' * 3_000}\n{row}": torch.ones(1, 2) for row in range(200)}
    for kind in (UViT, PolicyNet, VQModel):
        for content in (state, state | weights(kind), {f"{'y' * 5_000}": state}):
            torch.save(content, tmp_path / "file.pth")
            for arguments in (None, ARGUMENTS[kind]):
                with pytest.raises(CheckpointError) as caught:
                    presets.read(kind, tmp_path / "file.pth", arguments)
                assert len(str(caught.value)) < 900 + len(str(tmp_path))
                assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["shadow_params", "ema", "nested"])
@pytest.mark.parametrize("kind", [UViT, PolicyNet])
def test_averages_in_a_list_are_in_the_order_of_the_parameters(
    kind: type[nn.Module], place: str, tmp_path: Path
) -> None:
    model = kind(**ARGUMENTS[kind])
    with torch.no_grad():
        listed = [torch.full_like(each, row) for row, each in enumerate(model.parameters(), 1)]
    averages: dict[str, Any] = {"nested": {"ema": {"decay": 0.99, "shadow_params": listed}}}
    content = {"model": weights(kind)} | averages.get(place, {place: listed})
    loaded, found = read(kind, content, tmp_path)
    for row, (each, own) in enumerate(zip(loaded.parameters(), listed, strict=True), 1):
        assert torch.equal(each, own) and (each == row).all()
    assert any("averaged weights (EMA), a list in their order" in note for note in found.notes)


def test_a_list_of_averages_that_does_not_fit_is_said(tmp_path: Path) -> None:
    state = weights(UViT)
    content = {"model": state, "shadow_params": [torch.ones(3)]}
    model, found = read(UViT, content, tmp_path)
    assert all(torch.equal(each, state[key]) for key, each in model.state_dict().items())
    assert any("shadow_params holds averaged weights without names" in n for n in found.notes)
