"""Halton-MaskGIT's transformer beside recordings of the official code and plain formulas.

Covered: logits on masked images, and at the first and last step of generations by both official
samplers; every option beside the formulas, written with functions of PyTorch; registers, the
matrix that is there twice; published and training files; what the constructor refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.export import presets
from fewstep.export.models.halton_transformer import HaltonTransformer

Layouts = dict[str, dict[str, torch.Size]]
Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]
State = dict[str, Tensor]

SMALL: dict[str, Any] = {
    "input_size": 3,
    "hidden_dim": 32,
    "codebook_size": 10,
    "depth": 2,
    "heads": 3,  # 10 wide each: attention is narrower than the network
    "mlp_dim": 100,
    "nclass": 4,
}


def _transformer(**changes: Any) -> HaltonTransformer:
    """With weights so large that everything matters."""
    model, generator = HaltonTransformer(**{**SMALL, **changes}), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.eval()


def _inputs(model: HaltonTransformer) -> tuple[Tensor, Tensor]:
    """Two images with masked tokens, one without a class."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(model.codebook_size + 1, (2, model.num_tokens), generator=generator)
    return tokens, torch.tensor([1, model.nclass])


def _state(data: dict[str, npt.NDArray[Any]]) -> State:
    return {key[3:]: torch.from_numpy(data[key]) for key in data if key.startswith("sd/")}


def _close(found: Tensor, expected: Tensor | npt.NDArray[Any]) -> None:
    expected = np.asarray(expected)
    atol = 1e-4 * max(1, float(np.abs(expected).max()) / 100)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=atol)


# --- the transformer, beside recordings


@pytest.fixture(scope="module")
def recorded_net(recorded: Recorded) -> HaltonTransformer:
    data = recorded("halton_net")
    arguments = json.loads(str(data["cfg"]))["transformer"]
    return presets.load(HaltonTransformer, _state(data), Path("x.pth"), arguments)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_gives_the_official_logits(
    dtype: torch.dtype, recorded_net: HaltonTransformer, recorded: Recorded
) -> None:
    data = recorded("halton_net")
    dropped = torch.from_numpy(np.where(data["in/drop"], recorded_net.nclass, data["in/y"]))
    assert {bool(each) for each in data["in/drop"]} == {False, True}
    tokens = torch.from_numpy(data["in/ids"]).flatten(1)
    _close(recorded_net(tokens.to(dtype), dropped.to(dtype)), data["out/logits"])


def _before_last_step(data: dict[str, npt.NDArray[Any]], run: str, kind: str) -> Tensor:
    """Tokens that the last step of a generation reads, ``[B, N]``.

    The Halton sampler decides the positions of its ``masks`` in every step, and no other. The
    confidence sampler draws all known positions anew; its ``masks`` are those still masked.
    """
    drawn = torch.from_numpy(data[f"out/{run}/pred_codes"]).long().flatten(2)  # [T, B, N]
    masks = torch.from_numpy(data[f"out/{run}/masks"]).bool().flatten(2)
    mask_id = torch.full_like(drawn[0], json.loads(str(data["cfg"]))["mask_value"])
    if kind == "confidence":
        return torch.where(masks[-2], mask_id, drawn[-2])
    tokens = mask_id
    for step in range(len(drawn) - 1):
        tokens = torch.where(masks[step], drawn[step], tokens)
    return tokens


@torch.no_grad()
@pytest.mark.parametrize("run", ["conf", "conf_cos", "halton", "halton_rand"])
def test_gives_the_logits_of_official_generations(
    run: str, recorded_net: HaltonTransformer, recorded: Recorded
) -> None:
    data = recorded("halton_net")
    said = json.loads(str(data["cfg"]))["runs"][run]
    labels = torch.tensor(said["labels"])
    condition = torch.cat([labels, torch.full_like(labels, recorded_net.nclass)])
    masked = torch.full((4, recorded_net.num_tokens), recorded_net.codebook_size)
    _close(recorded_net(masked, condition), data[f"out/{run}/logits_first"])
    last = _before_last_step(data, run, said["kind"]).repeat(2, 1)
    expected = data[f"out/{run}/logits_last_f16"].astype(np.float32)
    np.testing.assert_allclose(recorded_net(last, condition), expected, rtol=1e-3, atol=1e-3)


def test_has_exactly_the_official_keys(recorded_net: HaltonTransformer, recorded: Recorded) -> None:
    official = {key[3:] for key in recorded("halton_net") if key.startswith("sd/")}
    assert recorded_net.state_dict().keys() == official


# --- the transformer, beside its formulas


def _rms(x: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps=1e-5)


def _reference(state: State, heads: int, registers: int, tokens: Tensor, classes: Tensor) -> Tensor:
    """Logits, from the keys of a file alone."""
    count = tokens.shape[1]
    c = state["cls_emb.weight"][classes]
    x = state["tok_emb.weight"][tokens] + state["pos_emb.weight"]
    if registers:
        x = torch.cat([x, state["reg_tokens.weight"].repeat(len(x), 1, 1)], 1)

    def parts(name: str, number: int) -> tuple[Tensor, ...]:
        modulation = F.linear(F.silu(c), state[f"{name}.mlp.1.weight"], state[f"{name}.mlp.1.bias"])
        return tuple(each[:, None] for each in modulation.chunk(number, 1))

    for block in range(sum(key.endswith(".wo.weight") for key in state)):
        name = f"transformer.layers.{block}"
        shift, scale, gate, ff_shift, ff_scale, ff_gate = parts(name, 6)
        h = _rms(x, state[f"{name}.ln1.weight"]) * (1 + scale) + shift
        q, k, v = (F.linear(h, state[f"{name}.attn.w{each}.weight"]) for each in "qkv")
        q, k, v = (torch.stack(each.chunk(heads, -1), 1) for each in (_rms(q), _rms(k), v))
        h = torch.cat(F.scaled_dot_product_attention(q, k, v).unbind(1), -1)
        x = x + gate * F.linear(h, state[f"{name}.attn.wo.weight"])
        h = _rms(x, state[f"{name}.ln2.weight"]) * (1 + ff_scale) + ff_shift
        w1, w2, w3 = (state[f"{name}.ff.w{each}.weight"] for each in "123")
        x = x + ff_gate * ((F.silu(h @ w1.T) * (h @ w3.T)) @ w2.T)
    shift, scale = parts("last_norm", 2)
    norm = "last_norm.norm_final"
    h = _rms(x[:, :count], state[f"{norm}.weight"]) + state[f"{norm}.bias"]
    return F.linear(h * (1 + scale) + shift, state["head.weight"], state["head.bias"])


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 1, 3])
@pytest.mark.parametrize("heads", [1, 3, 4])
def test_computes_its_formulas(registers: int, heads: int) -> None:
    model = _transformer(register=registers, heads=heads)
    tokens, classes = _inputs(model)
    found = model(tokens, classes)
    assert found.shape == (2, 9, 11)
    expected = _reference(model.state_dict(), heads, registers, tokens, classes)
    _close(found, expected)


@pytest.mark.parametrize(("mlp_dim", "width"), [(100, 256), (384, 256), (385, 256), (387, 512)])
def test_the_feed_forward_layers_are_two_thirds_rounded_up(mlp_dim: int, width: int) -> None:
    state = _transformer(mlp_dim=mlp_dim).state_dict()
    assert state["transformer.layers.0.ff.w1.weight"].shape == (width, 32)


@torch.no_grad()
def test_registers_have_no_order() -> None:
    model = _transformer(register=3)
    before = model(*_inputs(model))
    model.reg_tokens.weight.copy_(model.reg_tokens.weight[[2, 0, 1]])
    _close(model(*_inputs(model)), before)
    model.reg_tokens.weight.zero_()
    assert (model(*_inputs(model)) - before).abs().max() > 0.01


def test_without_registers_there_is_no_such_key() -> None:
    extra = _transformer(register=1).state_dict().keys() - _transformer(register=0).state_dict()
    assert extra == {"reg_tokens.weight"}


def test_one_matrix_embeds_tokens_and_gives_logits() -> None:
    model = _transformer()
    assert model.head.weight is model.tok_emb.weight
    model(*_inputs(model)).square().sum().backward()
    assert model.tok_emb.weight.grad is not None


@torch.no_grad()
def test_of_two_matrices_in_a_file_the_last_is_taken_as_officially() -> None:
    model = _transformer()
    state = model.state_dict() | {"tok_emb.weight": torch.zeros(11, 32)}
    loaded = presets.load(HaltonTransformer, state, Path("x.pth"), SMALL)
    assert torch.equal(loaded(*_inputs(model)), model(*_inputs(model)))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"proj": 2}, "proj must be 1, got 2"),
        ({"heads": 33}, "heads must be at most hidden_dim, 32, got 33"),
        ({"depth": 0}, "depth must be a whole number, at least 1, got 0"),
        ({"hidden_dim": 32.0}, "hidden_dim must be a whole number, at least 1, got 32.0"),
        ({"register": -1}, "register must be a whole number, at least 0, got -1"),
        ({"nclass": True}, "nclass must be a whole number, at least 1, got True"),
    ],
)
def test_transformers_that_do_not_build_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HaltonTransformer(**{**SMALL, **changed})


# --- published files


def _hollow(shapes: dict[str, torch.Size]) -> State:
    """Tensors of these shapes in one number's memory each."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


_PUBLISHED = [  # with the millions of parameters that the authors' table has
    ("256_tiny", 16, 384, 6, 6, 64, 23),
    ("256_small", 16, 512, 12, 6, 85, 69),
    ("256_base", 16, 768, 12, 12, 64, 142),
    ("384_small", 24, 512, 12, 6, 85, 69),
    ("384_base", 24, 768, 12, 12, 64, 142),
    ("384_large", 24, 1024, 24, 16, 64, 480),
]


@pytest.mark.parametrize(
    ("name", "side", "width", "depth", "heads", "head_width", "millions"), _PUBLISHED
)
def test_published_transformers_are_recognised(
    name: str,
    side: int,
    width: int,
    depth: int,
    heads: int,
    head_width: int,
    millions: int,
    layouts: Layouts,
) -> None:
    file = f"ImageNet_{name}.pth"
    model = presets.load(HaltonTransformer, _hollow(layouts[file]), Path(file), None)
    blocks: Any = model.transformer.layers
    assert (model.input_size, model.hidden_dim, len(blocks)) == (side, width, depth)
    assert (blocks[0].attn.heads, blocks[0].attn.head_width) == (heads, head_width)
    assert (model.codebook_size, model.nclass, model.register) == (16384, 1000, 1)
    count = sum(each.numel() for each in model.parameters()) - model.tok_emb.weight.numel()
    assert count / 1e6 == pytest.approx(millions, abs=1)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_training_files_are_read_as_they_are(prefix: str, tmp_path: Path) -> None:
    model, path = _transformer(), tmp_path / "current.pth"
    weights = {f"{prefix}{key}": each for key, each in model.state_dict().items()}
    rest = {"iter": 7, "global_epoch": 2, "optimizer_state_dict": {"state": {}}}
    torch.save({"model_state_dict": weights, **rest}, path)
    found, _ = presets.read(HaltonTransformer, path, SMALL)
    with torch.no_grad():
        assert torch.equal(found(*_inputs(found)), model(*_inputs(model)))
