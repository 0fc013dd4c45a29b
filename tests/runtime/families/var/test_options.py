"""The options of VAR's constructors, decoded by PyTorch's modules in the place of engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny_var
from tests.runtime.families.var.eager import decode
from torch import Tensor

from fewstep.export.models.var import VAR
from fewstep.export.models.var_quantizer import phi_indices
from fewstep.export.models.var_vae import VQVAE
from fewstep.export.source import Graph
from fewstep.export.torch_engine import TorchEngine
from fewstep.export.var_graphs import graphs
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.families import Model, family_of
from fewstep.runtime.families.var.model import VarModel
from fewstep.runtime.families.var.settings import VarSettings
from fewstep.runtime.memory import Plans
from fewstep.runtime.records import GraphInfo, TensorInfo
from fewstep.runtime.settings import settings_of

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "shared modulation": ({"shared_aln": True}, {}),
    "no unit queries": ({"attn_l2_norm": False}, {}),
    "both": ({"shared_aln": True, "attn_l2_norm": False, "num_heads": 6}, {}),
    "a wide FFN": ({"mlp_ratio": 2.5, "norm_eps": 1e-5, "depth": 3}, {}),
    "no padding": ({"embed_dim": 128, "num_heads": 2}, {}),
    "one scale": ({"patch_nums": [3]}, {"v_patch_nums": [3]}),
    "wide at first": ({"patch_nums": [3, 4]}, {"v_patch_nums": [3, 4]}),
    "leaps": ({"patch_nums": [2, 5, 9]}, {"v_patch_nums": [2, 5, 9]}),
    "one φ": ({}, {"share_quant_resi": 1, "quant_resi": -0.7}),
    "a φ a scale": ({}, {"share_quant_resi": 0}),
    "two φ": ({}, {"share_quant_resi": 2}),
    "φ counted": ({}, {"share_quant_resi": 0, "default_qresi_counts": 3}),
    "no φ": ({}, {"quant_resi": 0.0}),
    "1×1 convolutions": ({}, {"quant_conv_ks": 1, "using_znorm": True}),
    "attention in the decoder": ({}, {"using_sa": True, "using_mid_sa": True}),
}


def _networks(transformer: dict[str, Any], tokenizer: dict[str, Any]) -> tuple[VAR, VQVAE]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        vae = VQVAE(**{**tiny_var.TOKENIZER, **tokenizer})
        var = VAR(vae, **{**tiny_var.TRANSFORMER, **transformer})
        with torch.no_grad():
            for parameter in (var.pos_start, var.pos_1LC, var.lvl_embed.weight):
                torch.nn.init.normal_(parameter, std=0.5)
            var.head.weight.mul_(6)
    return var.eval(), vae.eval()


def _model(var: VAR, vae: VQVAE) -> VarModel:
    side = var.patch_nums[-1] * vae.downsampling
    return VarModel(
        patch_nums=var.patch_nums,
        phis=phi_indices(len(vae.quantize.phis), len(var.patch_nums)),
        codebook_size=var.codebook_size,
        codebook_width=var.codebook_width,
        depth=var.depth,
        width=var.embed_dim,
        image_size=(side, side),
        condition=ClassCondition(num_classes=5, unconditional_id=5),
    )


def _dtype(tensor: Tensor) -> Any:
    return str(tensor.dtype).removeprefix("torch.")


@torch.no_grad()
def _info(name: str, graph: Graph, model: VarModel) -> GraphInfo:
    """A graph's entry in a manifest, without an export."""
    given = graph.module(*graph.inputs.values())
    outputs = dict(zip(graph.outputs, given if isinstance(given, tuple) else (given,), strict=True))
    shapes = model.tensor_shapes()

    def described(tensors: dict[str, Tensor]) -> dict[str, TensorInfo]:
        return {
            each: TensorInfo(dtype=_dtype(value), shape=shapes[name, each])
            for each, value in tensors.items()
        }

    return GraphInfo(
        file=f"{name}.onnx", inputs=described(dict(graph.inputs)), outputs=described(outputs)
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_decoding_is_that_of_eager_pytorch(name: str) -> None:
    var, vae = _networks(*OPTIONS[name])
    info, family = _model(var, vae), family_of("var")
    made = graphs(info, var, vae, {})
    described = {each: _info(each, graph, info) for each, graph in made.items()}
    engines = {each: TorchEngine(each, made[each].module, described[each]) for each in made}
    model = Model(info, described)
    guided: Any = 1 if name == "wide at first" else None
    given: dict[str, Any] = {"guidance": 2, "top_k": 40, "top_p": 1, "sampling_temperature": 0}
    given |= {"guided_scales": guided, "reuse_first": True}
    settings = settings_of(VarSettings(), given)
    condition, seeds = np.array([0, 4], np.int32), np.arange(2, dtype=np.uint64)
    request = family.request(model, condition, seeds, settings)
    key = family.key(model, request, 2)
    plans = Plans(CpuDevice(), engines, lambda each: family.program(model, each))
    outputs = plans.run(key, family.inputs(model, request, slice(0, 2)))
    trace = family.trace(model, family.decisions(model, key, outputs))
    plans.close()
    scales = info.scales
    ramp = [0.0 if guided else 2 * s / max(1, scales - 1) for s in range(scales)]
    wanted = decode(var, vae, [0, 4], ramp)
    for scale, tokens in enumerate(wanted.tokens):
        np.testing.assert_array_equal(trace.tokens[scale, :, : tokens.shape[1]], tokens)
    np.testing.assert_allclose(trace.final, wanted.f_hat[-1], atol=3e-5)
    pixels = wanted.image.permute(0, 2, 3, 1).mul(255).round().numpy()
    assert np.abs(outputs["pixels"] - pixels).max() <= 1
