"""The options of MAR's constructor, decoded by PyTorch's modules in the place of engines.

Covered: patches, buffers, depths and widths of every network, other norms, strides of the
tokenizer, and bundles without an unconditional class: whole decodes, and with LazyMAR's caches,
against eager PyTorch. The least of all sizes also as exported graphs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests import tiny_mar
from tests.runtime.families.mar import drawn
from tests.runtime.families.mar.eager import Guidance, constant, decode, image, linear, listed
from tests.runtime.families.mar.gaussian import Spaced, space_timesteps
from tests.runtime.families.mar.lazy import Lazy
from torch import Tensor

from fewstep.export.config import ExportConfig
from fewstep.export.flow import export
from fewstep.export.mar import Models, describe
from fewstep.export.mar_graphs import graphs
from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR
from fewstep.export.source import Graph
from fewstep.export.torch_engine import TorchEngine
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.families import Model, family_of
from fewstep.runtime.families.mar.model import MarModel
from fewstep.runtime.generator import Generator
from fewstep.runtime.memory import Plans
from fewstep.runtime.records import GraphInfo, TensorInfo
from fewstep.runtime.settings import settings_of

Options = dict[str, Any]
Array = npt.NDArray[Any]

OPTIONS: dict[str, tuple[Options, int]] = {  # and how many blocks always run for all positions
    "the tiny one": ({}, 1),
    "no patches": ({"img_size": 8, "patch_size": 1}, 1),
    "large patches": ({"img_size": 18, "patch_size": 3}, 1),
    "one position of a buffer": ({"buffer_size": 1}, 1),
    "a large buffer": ({"buffer_size": 40}, 1),
    "one block each": ({"encoder_depth": 1, "decoder_depth": 1, "diffloss_d": 1}, 0),
    "two blocks": ({"decoder_depth": 2, "encoder_depth": 3}, 0),
    "a fourth block": ({"decoder_depth": 4}, 1),
    "a deep decoder": ({"decoder_depth": 12, "buffer_size": 20}, 3),
    "deeper": ({"decoder_depth": 17, "encoder_depth": 1}, 3),
    "a narrow encoder": ({"encoder_embed_dim": 10, "encoder_num_heads": 1}, 1),
    "a wide encoder": ({"encoder_embed_dim": 130, "encoder_num_heads": 5}, 1),
    "no padding": (
        {"encoder_embed_dim": 128, "encoder_num_heads": 4, "decoder_embed_dim": 64},
        1,
    ),
    "a narrow decoder": ({"decoder_embed_dim": 20, "decoder_num_heads": 5}, 1),
    "a wide decoder": ({"decoder_embed_dim": 72, "decoder_num_heads": 1}, 1),
    "other hidden widths": ({"mlp_ratio": 1.5, "norm_layer_eps": 1e-5}, 1),
    "a wide head": ({"diffloss_w": 70, "diffloss_d": 4}, 1),
    "channels": ({"vae_embed_dim": 5, "img_size": 8, "patch_size": 1, "vae_stride": 2}, 1),
    "a stride of 4": ({"vae_stride": 4, "img_size": 32}, 1),
    "no stride": ({"vae_stride": 1, "img_size": 8}, 1),
    "four tokens": ({"img_size": 8}, 1),
    "one class": ({"class_num": 1}, 1),
}
SEEDS = [3, 2**64 - 1]
STEPS, TOP = "4", 900
PLAIN: Options = {"diffusion_steps": STEPS, "max_timestep": TOP, "guidance": 2}
CLOSE = 1e-5


def _networks(options: Options) -> tuple[MAR, AutoencoderKL]:
    """Networks with random weights; the tokenizer has as many levels as the stride needs."""
    mar, _ = tiny_mar.models(seed=5, **options)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(6)
        levels = [1] * mar.vae_stride.bit_length()
        tokenizer = AutoencoderKL(
            **{**tiny_mar.TOKENIZER, "embed_dim": mar.vae_embed_dim, "ch_mult": levels}
        )
    return mar, tokenizer.eval()


@torch.no_grad()
def _info(name: str, graph: Graph, model: MarModel) -> GraphInfo:
    """A graph's entry in a manifest, without an export."""
    given = graph.module(*graph.inputs.values())
    outputs = dict(zip(graph.outputs, given if isinstance(given, tuple) else (given,), strict=True))
    shapes = model.tensor_shapes()

    def described(tensors: dict[str, Tensor]) -> dict[str, TensorInfo]:
        return {
            each: TensorInfo(
                dtype=str(value.dtype).removeprefix("torch."),  # type: ignore[arg-type]
                shape=shapes[name, each],
            )
            for each, value in tensors.items()
        }

    return GraphInfo(
        file=f"{name}.onnx", inputs=described(dict(graph.inputs)), outputs=described(outputs)
    )


class _Opened:
    """A model with PyTorch's modules as its engines."""

    def __init__(self, mar: MAR, tokenizer: AutoencoderKL, **config: Any) -> None:
        said = ExportConfig(latent_scale=tiny_mar.LATENT_SCALE, **config)
        info, _ = describe(Models(mar, tokenizer), said, tiny_mar.LATENT_SCALE)
        made = graphs(info, mar, tokenizer)
        described = {name: _info(name, graph, info) for name, graph in made.items()}
        self.info, self.model, self._family = info, Model(info, described), family_of("mar")
        self._engines = {
            name: TorchEngine(name, graph.module, described[name]) for name, graph in made.items()
        }

    def run(self, classes: Sequence[int], settings: Options) -> tuple[Any, Array]:
        """The trace and the pixels of a request."""
        family, model = self._family, self.model
        condition, seeds = np.array(classes, np.int32), np.array(SEEDS, np.uint64)
        chosen = settings_of(self.info.defaults, settings)
        request = family.request(model, condition, seeds, chosen)
        key = family.key(model, request, len(classes))
        plans = Plans(CpuDevice(), self._engines, lambda each: family.program(model, each))
        outputs = plans.run(key, family.inputs(model, request, slice(0, len(classes))))
        trace = family.trace(model, family.decisions(model, key, outputs))
        plans.close()
        return trace, outputs["pixels"]


def _wanted(
    mar: MAR,
    classes: Sequence[int],
    guidance: Guidance,
    iterations: int,
    lazy: Lazy | None = None,
) -> list[Tensor]:
    return decode(
        mar,
        classes,
        drawn.orders(SEEDS, mar.seq_len),
        lambda step: drawn.noise(SEEDS, step, mar.seq_len, mar.token_embed_dim),
        [Spaced(space_timesteps(STEPS, TOP))] * iterations,
        guidance,
        transformer=lazy,
    ).tokens


def _assert_same(trace: Any, wanted: list[Tensor]) -> None:
    largest = float(wanted[-1].abs().max())
    for found, tokens in zip(trace.tokens, wanted, strict=True):
        np.testing.assert_allclose(found, tokens.numpy(), rtol=0, atol=CLOSE * largest)


def _assert_pixels(mar: MAR, tokenizer: AutoencoderKL, pixels: Array, tokens: Tensor) -> None:
    drawn_as = image(mar, tokenizer, tokens, tiny_mar.LATENT_SCALE)
    wanted = drawn_as.permute(0, 2, 3, 1).mul(255).round().numpy()
    assert pixels.shape == wanted.shape
    assert np.abs(pixels - wanted).max() <= 1


def _lazily(
    mar: MAR, trace: Any, full_blocks: int, iterations: int, reuse: bool, first: int = 2
) -> Lazy:
    return Lazy(
        mar,
        drawn.orders(SEEDS, mar.seq_len),
        full_blocks=full_blocks,
        refresh=4,
        first=first,
        parts=[0.0] * iterations,
        reuse_guidance=reuse,
        similarity=trace.similarity,
    )


LAZY: Options = {"refresh": 4, "refresh_first": 2, "recompute": 0}


@pytest.mark.parametrize("name", OPTIONS)
def test_decoding_is_that_of_eager_pytorch(name: str) -> None:
    options, full_blocks = OPTIONS[name]
    mar, tokenizer = _networks(options)
    opened = _Opened(mar, tokenizer)
    assert opened.info.full_blocks == full_blocks
    iterations, classes = min(8, mar.seq_len), [0, mar.class_num - 1]
    settings, guidance = {**PLAIN, "iterations": iterations}, linear(2, mar.seq_len)
    trace, pixels = opened.run(classes, settings)
    wanted = _wanted(mar, classes, guidance, iterations)
    _assert_same(trace, wanted)
    _assert_pixels(mar, tokenizer, pixels, wanted[-1])
    for reuse in (False, True):
        trace, _ = opened.run(classes, {**settings, **LAZY, "reuse_guidance": reuse})
        lazy = _lazily(mar, trace, full_blocks, iterations, reuse)
        _assert_same(trace, _wanted(mar, classes, guidance, iterations, lazy))


def test_no_class_is_a_class_where_there_is_no_guidance() -> None:
    mar, tokenizer = _networks({})
    opened = _Opened(mar, tokenizer, unconditional="none")
    assert opened.info.defaults.guidance == (1.0, 1.0)
    settings = {"diffusion_steps": STEPS, "max_timestep": TOP, "iterations": 5}
    wanted = _wanted(mar, [5, 2], constant(1), 5)
    for more in ({}, {"guidance": 1}):
        trace, _ = opened.run([5, 2], {**settings, **more})
        _assert_same(trace, wanted)


def test_another_row_may_stand_for_no_class() -> None:
    mar, tokenizer = _networks({})
    opened = _Opened(mar, tokenizer, unconditional=3)
    trace, _ = opened.run([2, 0], {**PLAIN, "iterations": 5, "guidance": "3:3"})
    with torch.no_grad():  # to the eager decode it is always the last one
        mar.fake_latent.copy_(mar.class_emb.weight[3:4])
    _assert_same(trace, _wanted(mar, [2, 0], constant(3), 5))


@pytest.mark.slow
def test_exported_graphs_decode_the_same(tmp_path: Path) -> None:
    """What differs most from the tiny one: no cache of the decoder, and the least of each size."""
    options = {
        "img_size": 4,
        "patch_size": 1,
        "buffer_size": 1,
        "class_num": 1,
        **{"encoder_depth": 1, "encoder_embed_dim": 10, "encoder_num_heads": 1},
        **{"decoder_depth": 1, "decoder_embed_dim": 20, "decoder_num_heads": 5},
        **{"diffloss_d": 1, "diffloss_w": 7},
    }
    mar, tokenizer = _networks(options)
    given = tiny_mar.checkpoints(tmp_path)
    torch.save({"model_ema": mar.state_dict()}, given["transformer"])
    torch.save({"model": tokenizer.state_dict()}, given["tokenizer"])
    config = {
        "transformer": {**tiny_mar.TRANSFORMER, **options},
        "tokenizer": tiny_mar.TOKENIZER,
        "latent_scale": tiny_mar.LATENT_SCALE,
        "defaults": {"iterations": 4, "diffusion_steps": STEPS, "guidance": "1,2,3,2"},
    }
    given["config"].write_text(json.dumps(config))
    bundle = export("mar", given, tmp_path / "bundle", command="pytest").path
    with Generator.open(bundle, threads=1) as generator:
        for reuse in (False, True):
            settings = {"max_timestep": TOP, **LAZY, "refresh_first": 1, "reuse_guidance": reuse}
            made = generator.generate(class_ids=[0, 0], seed=SEEDS, **settings)
            lazy = _lazily(mar, made.trace, 0, 4, reuse, first=1)
            wanted = _wanted(mar, [0, 0], listed(1, 2, 3, 2), 4, lazy)
            _assert_same(made.trace, wanted)
            _assert_pixels(mar, tokenizer, made.images, wanted[-1])
