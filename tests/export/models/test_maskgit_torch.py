"""Google's MaskGIT as maskgit-torch publishes it: transformer and tokenizer.

Covered: logits, images and ids of the official code; published keys and shapes; sizes of the
transformer that the recording does not have, beside PyTorch's own layers; the graphs; what the
transformer's constructor refuses. The tokenizer's other sizes are in ``test_maskgit_tokenizer.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.officials.maskgit_torch import transformer_arguments
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export import presets
from fewstep.export.models import VQModel
from fewstep.export.models.maskgit_tokenizer import VQVAE
from fewstep.export.models.maskgit_transformer import (
    Attention,
    BidirectionalTransformer,
    Encoder,
)
from fewstep.export.onnx_graph import export_graph
from fewstep.export.source import Graph
from fewstep.runtime.errors import CheckpointError

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]
Layouts = dict[str, dict[str, torch.Size]]

TRANSFORMER: dict[str, Any] = {
    "num_image_tokens": 10,
    "num_codebook_vectors": 20,
    "dim": 24,
    "hidden_dim": 40,
    "num_heads": 3,
    "n_layers": 2,
    "codebook_size": 12,
}
TOKENIZER: dict[str, Any] = {
    "codebook_size": 12,
    "embedding_dim": 8,
    "filters": 32,
    "channel_multipliers": [1, 2],
}
_RUNS = ["t8", "t5_cold", "edit"]


def _close(found: Tensor, recorded: npt.NDArray[Any], atol: float = 1e-4) -> None:
    np.testing.assert_allclose(found.numpy(), recorded, rtol=0, atol=atol)


def _state(data: dict[str, npt.NDArray[Any]], network: str) -> dict[str, Tensor]:
    start = f"sd.{network}/"
    return {k.removeprefix(start): torch.from_numpy(data[k]) for k in data if k.startswith(start)}


@pytest.fixture(scope="module")
def data(recorded: Recorded) -> dict[str, npt.NDArray[Any]]:
    return recorded("maskgit_orig")


@pytest.fixture(scope="module")
def cfg(data: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    return dict(json.loads(str(data["cfg"])))


@pytest.fixture(scope="module")
def transformer(data: dict[str, npt.NDArray[Any]], cfg: dict[str, Any]) -> BidirectionalTransformer:
    arguments = transformer_arguments(cfg)
    state = _state(data, "transformer")
    return presets.load(BidirectionalTransformer, state, Path("x.ckpt"), arguments)


@pytest.fixture(scope="module")
def tokenizer(data: dict[str, npt.NDArray[Any]], cfg: dict[str, Any]) -> VQVAE:
    return presets.load(VQVAE, _state(data, "tokenizer"), Path("x.ckpt"), cfg["vqvae"])


def _random(module: nn.Module) -> nn.Module:
    """Every parameter random, those of norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in module.parameters():
            each.copy_(0.3 * torch.randn(each.shape, generator=generator))
    return module.eval()


# --- beside the official code


@torch.no_grad()
def test_logits_of_a_sequence_are_the_official_ones(
    transformer: BidirectionalTransformer, data: dict[str, npt.NDArray[Any]]
) -> None:
    _close(transformer.sequence_logits(torch.from_numpy(data["in/ids"])), data["out/logits"])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("run", _RUNS)
def test_logits_of_tokens_and_class_are_the_official_ones(
    run: str,
    dtype: torch.dtype,
    transformer: BidirectionalTransformer,
    data: dict[str, npt.NDArray[Any]],
    cfg: dict[str, Any],
) -> None:
    """The class apart, the mask with the id after the codes."""
    sequence = torch.from_numpy(data[f"out/{run}/ids_in"])[1].to(dtype)
    codes, mask = transformer.codebook_size, cfg["mask_token_id"]
    assert (transformer.mask_token_id, transformer.num_classes) == (mask, cfg["num_class"])
    classes = torch.tensor(cfg["runs"][run]["labels"], dtype=dtype)
    assert torch.equal(sequence[:, 0], classes + codes)
    tokens = torch.where(sequence == mask, codes, sequence)[:, 1:]
    assert (tokens == codes).any()
    _close(transformer(tokens, classes), data[f"out/{run}/step1_logits"][:, 1:])


@torch.no_grad()
def test_images_are_the_official_ones(tokenizer: VQVAE, data: dict[str, npt.NDArray[Any]]) -> None:
    code = torch.from_numpy(data["in/code"])
    _close(tokenizer.decode(code), data["out/image_raw"])
    flat = code.flatten(1).to(torch.int32)
    _close(tokenizer.unclamped(flat), data["out/image_raw"])
    _close(tokenizer(flat), data["out/image_raw"].clip(0, 1))


@torch.no_grad()
@pytest.mark.parametrize("run", _RUNS)
def test_images_of_generations_are_the_official_ones(
    run: str, tokenizer: VQVAE, data: dict[str, npt.NDArray[Any]]
) -> None:
    recorded = data[f"out/{run}/image_clipped_f16"]
    tokens = data[f"out/{run}/final_seqs"][: len(recorded), -1, 1:].astype(np.int64)
    _close(tokenizer(torch.from_numpy(tokens)), recorded.astype(np.float32), atol=1e-3)


@torch.no_grad()
def test_ids_of_an_image_are_the_official_ones(
    tokenizer: VQVAE, data: dict[str, npt.NDArray[Any]]
) -> None:
    ids = tokenizer.encode(torch.from_numpy(data["in/image01"]))
    assert ids.shape == (1, 16)
    np.testing.assert_array_equal(ids.flatten(), data["out/enc_idx"])


# --- published files


@pytest.mark.parametrize("size", [256, 512])
def test_published_layouts_are_those_of_the_classes(size: int, layouts: Layouts) -> None:
    """Keys and shapes, neither more nor fewer."""
    with torch.device("meta"):
        transformer = BidirectionalTransformer(num_image_tokens=(size // 16) ** 2 + 1)
        tokenizer = VQVAE(image_size=size)
    for model, name in ((transformer, "maskgit"), (tokenizer, "tokenizer")):
        found = {key: value.shape for key, value in model.state_dict().items()}
        assert found == layouts[f"{name}_imagenet{size}.ckpt"]


def _hollow(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Tensors of these shapes in one number's memory each."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("size", [256, 512])
def test_published_files_are_recognised(size: int, layouts: Layouts, tmp_path: Path) -> None:
    names = [f"{each}_imagenet{size}.ckpt" for each in ("maskgit", "tokenizer")]
    for name in names:
        torch.save({"state_dict": _hollow(layouts[name])}, tmp_path / name)
    transformer, found = presets.read(BidirectionalTransformer, tmp_path / names[0], None)
    assert found.notes == ("took what is under state_dict",)
    assert (transformer.num_tokens, transformer.codebook_size) == ((size // 16) ** 2, 1024)
    assert (transformer.num_classes, transformer.mask_token_id) == (1000, 2024)
    block: Any = transformer.blocks[23]
    assert (len(transformer.blocks), block.MultiHeadAttention.heads) == (24, 16)
    tokenizer, _ = presets.read(VQVAE, tmp_path / names[1], None)
    assert tokenizer.grid(transformer.num_tokens) == (size // 16, size // 16)
    assert (tokenizer.downsampling, tokenizer.codebook_size) == (16, 1024)


def test_a_file_of_the_other_network_is_told(layouts: Layouts, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": _hollow(layouts["tokenizer_imagenet256.ckpt"])}, path)
    with pytest.raises(CheckpointError, match="is a MaskGIT tokenizer .* pass it as --tokenizer"):
        presets.read(BidirectionalTransformer, path, None)
    with pytest.raises(CheckpointError, match="is a maskgit-torch tokenizer"):
        presets.read(VQModel, path, None)


def test_a_tokenizer_needs_no_encoder(layouts: Layouts) -> None:
    layout = layouts["tokenizer_imagenet256.ckpt"]
    rest = {key: shape for key, shape in layout.items() if not key.startswith("encoder.")}
    model = presets.load(VQVAE, _hollow(rest), Path("x.ckpt"), None)
    assert not hasattr(model, "encoder")


# --- what the recording does not have


@torch.no_grad()
@pytest.mark.parametrize(("dim", "heads"), [(24, 1), (24, 3), (48, 16), (10, 10)])
def test_attention_is_that_of_pytorch(dim: int, heads: int) -> None:
    own = _random(Attention(dim, heads))
    theirs = nn.MultiheadAttention(dim, heads, batch_first=True).eval()
    theirs.load_state_dict(own.state_dict(), strict=True)
    x = torch.randn(3, 7, dim, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(own(x), theirs(x, x, x, need_weights=False)[0])


@torch.no_grad()
def test_a_block_is_the_post_norm_layer_of_pytorch() -> None:
    own = _random(Encoder(24, 40, 3))
    theirs = nn.TransformerEncoderLayer(
        24, 3, 40, activation=F.gelu, layer_norm_eps=1e-12, batch_first=True
    ).train()  # the layer's fast path is another computation; without dropout the slow one is exact
    names = {"MultiHeadAttention": "self_attn", "AttentionLN": "norm1", "MlpLN": "norm2"}
    names |= {"MLP.0": "linear1", "MLP.2": "linear2"}
    for each in (theirs.dropout, theirs.dropout1, theirs.dropout2):
        each.p = 0.0
    theirs.self_attn.dropout = 0.0
    renamed = re.compile("|".join(map(re.escape, names)))
    state = {renamed.sub(lambda at: names[at[0]], k): v for k, v in own.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    x = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(own(x), theirs(x))


@torch.no_grad()
def test_the_head_is_tied_to_the_embeddings() -> None:
    """A code's logit is the product of its embedding and the hidden state, and its bias."""
    model: Any = _random(BidirectionalTransformer(**TRANSFORMER))
    tokens, condition = torch.full((2, 9), 12), torch.tensor([0, 6])
    before = model(tokens, condition)
    model.bias[4] += 2
    after = model(tokens, condition)
    torch.testing.assert_close(after[..., 4], before[..., 4] + 2)
    model.tok_emb.weight[3] *= 2  # no position has this code
    twice = model(tokens, condition)[..., 3] - model.bias[3]
    torch.testing.assert_close(twice, 2 * (before[..., 3] - model.bias[3]))


@torch.no_grad()
@pytest.mark.parametrize("side", [(3, 3), (2, 5), (32, 32)])
def test_any_number_of_positions(side: tuple[int, int]) -> None:
    """Also those of images of 512 pixels, and of grids that are no squares."""
    count = side[0] * side[1]
    arguments = TRANSFORMER | {"num_image_tokens": count + 1, "n_layers": 1}
    model: Any = _random(BidirectionalTransformer(**arguments))
    tokens = torch.randint(13, (2, count), generator=torch.Generator().manual_seed(1))
    found = model(tokens, torch.tensor([0, 6]))
    assert found.shape == (2, count, 12)
    sequence = torch.cat([torch.tensor([[12], [18]]), torch.where(tokens == 12, 19, tokens)], 1)
    whole = model.sequence_logits(sequence)
    assert whole.shape == (2, count + 1, 20)
    torch.testing.assert_close(found, whole[:, 1:, :12])


@torch.no_grad()
def test_a_shorter_sequence_has_the_first_positions() -> None:
    long: Any = _random(BidirectionalTransformer(**TRANSFORMER))
    short = BidirectionalTransformer(**TRANSFORMER | {"num_image_tokens": 5}).eval()
    state = long.state_dict()
    short.load_state_dict(state | {"pos_emb": state["pos_emb"][:5]})
    ids = torch.tensor([[12, 19, 3, 0, 19]])
    torch.testing.assert_close(long.sequence_logits(ids), short.sequence_logits(ids))


@torch.no_grad()
def test_classes_and_positions_count() -> None:
    model: Any = _random(BidirectionalTransformer(**TRANSFORMER))
    masked = torch.full((7, 9), 12)
    found = model(masked, torch.arange(7))
    assert len(found.flatten(1).unique(dim=0)) == 7
    assert len(found[0].unique(dim=0)) == 9
    torch.testing.assert_close(model(masked[:1], torch.tensor([4])), found[4:5])


# --- graphs


def test_both_are_exported(tmp_path: Path) -> None:
    """Compared with PyTorch in ONNX Runtime, at other batches than the example's."""
    model = _random(BidirectionalTransformer(**TRANSFORMER))
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "tokens": torch.randint(13, (2, 9), generator=generator, dtype=torch.int32),
        "condition": torch.tensor([0, 6], dtype=torch.int32),
    }
    info = export_graph("transformer", Graph(model, inputs, ("logits",)), tmp_path)
    assert info.outputs["logits"].shape == ("batch", 9, 12)
    decoder = _random(VQVAE(**TOKENIZER | {"image_size": [4, 8]}))
    tokens = torch.randint(12, (2, 8), generator=generator, dtype=torch.int32)
    info = export_graph("decoder", Graph(decoder, {"tokens": tokens}, ("image",)), tmp_path)
    assert info.outputs["image"].shape == ("batch", 3, 4, 8)


# --- the constructor


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_heads": 5}, r"num_heads must divide dim \(24\), got 5"),
        ({"num_heads": 0}, "num_heads must be a whole number, at least 1, got 0"),
        ({"n_layers": 2.0}, "n_layers must be a whole number, at least 1, got 2.0"),
        ({"num_image_tokens": 1}, "num_image_tokens must be a whole number, at least 2, got 1"),
        ({"num_codebook_vectors": 13}, r"at least codebook_size \(12\), one class and the mask"),
        ({"codebook_size": True}, "codebook_size must be a whole number, at least 1, got True"),
    ],
)
def test_transformers_that_cannot_be_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BidirectionalTransformer(**TRANSFORMER | changed)
