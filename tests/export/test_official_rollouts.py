"""Every step of the official generations, replayed with their recorded noise.

Covered, with the models in PyTorch and as exported graphs in ONNX Runtime: the policy's actions,
the parameters they become, guidance, the sampled tokens, the confidences and what is masked again.
Then the runtime's own sampler is given the uniforms that stand for the recorded noise, and must
take the same decisions; and with its own noise it must follow the same formulas.

The official order of computation, with conditional logits c and unconditional u, guidance scale s,
sampling temperature τ, masking temperature μ and recorded Gumbel noise g:

    l          = c + s·(c − u)
    token      = argmax(log softmax(l / τ) + g_tokens)
    confidence = log_softmax(l)[token] + μ·g_confidence, +∞ where known
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from fewstep.export.models import PolicyNet, UViT
from fewstep.export.onnx_graph import export_graph
from fewstep.export.source import Graph
from fewstep.export.torch_engine import TorchEngine
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import Engine, run_once
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.families.masked.model import MaskedPolicyInfo
from fewstep.runtime.kernels.philox import uniforms
from fewstep.runtime.kernels.policy_parameters import policy_parameters
from fewstep.runtime.kernels.remask import remask
from fewstep.runtime.kernels.sample_tokens import sample_row, sample_tokens
from fewstep.runtime.records import GraphInfo, TensorInfo

Array = npt.NDArray[Any]
Recorded = Callable[[str], dict[str, Array]]

BACKENDS = ("torch", "onnxruntime")
ROLLOUTS = ("class", "text-heu0", "text-heu1")
PARAMETERS = ("manual_gen_ratios", "manual_temp", "manual_samp_temp", "manual_cfg")
"""The official names, in the order of the columns of ``[B, 4]`` parameters."""


@dataclass(frozen=True)
class Official:
    """One recorded generation: T steps, B images, N tokens, V codes.

    ``tokens_in``, ``sampled`` and ``tokens_out`` are ids ``[T, B, N]``, ``actions`` and
    ``parameters`` ``[T, B, 4]``, ``token_noise [T, B, N, V]``, ``confidence_noise [T, B, N]``,
    ``first_log_probabilities [B, N, V]`` (after guidance, step 0, float16), ``final_features
    [B, C]``: mean over the tokens after the last step.
    """

    condition: Array
    unconditional: Array
    residual: bool
    mask_token: int
    tokens_in: Array
    actions: Array
    parameters: Array
    sampled: Array
    tokens_out: Array
    token_noise: Array
    confidence_noise: Array
    first_log_probabilities: Array
    final_features: Array

    @property
    def steps(self) -> int:
        return len(self.tokens_in)


@dataclass(frozen=True)
class Passes:
    """What the models say at every step.

    Logits ``[T, B, N, V]``, actions ``[T, B, 4]``, and features ``[T + 1, B, N, C]``, the last
    ones those of the tokens that the last step left.
    """

    official: Official
    conditional: Array
    unconditional: Array
    features: Array
    actions: Array

    def parameters(self) -> Array:
        """Parameters ``[T, B, 4]`` by the runtime's kernel."""
        found = np.empty(self.actions.shape, np.float32)
        policy = MaskedPolicyInfo(residual=self.official.residual)
        for step, action in enumerate(self.actions):
            policy_parameters(
                action=action,
                **policy.offsets(step, self.official.steps),
                parameters=found[step],
                error=np.zeros(1, np.int32),
            )
        return found

    def guided(self) -> Array:
        """Logits after guidance ``[T, B, N, V]``."""
        scale = self.parameters()[:, :, 3, None, None]
        guided: Array = self.conditional + scale * (self.conditional - self.unconditional)
        return guided


def _official(name: str, recorded: Recorded) -> Official:
    if name == "class":
        data, run = recorded("adanat_rollout_class"), "out"
        config = json.loads(str(data["cfg"]))
        heu, empty = config["heu"], np.full(2, config["empty_ctx"], np.int32)
        condition = data["in/context"].reshape(-1).astype(np.int32)
    else:
        data, run = recorded("adanat_text"), f"out/{name.removeprefix('text-')}"
        config = json.loads(str(data["cfg"]))
        heu, condition = int(name[-1]), data["in/context"]
        empty = np.broadcast_to(data["in/empty_context"], condition.shape)
    tokens_in = data[f"{run}/masked_ids_in"].astype(np.int32)
    noise = data[f"{run}/gumbel_tokens_f16"].astype(np.float32)
    return Official(
        condition=condition,
        unconditional=empty,
        residual=bool(heu),
        mask_token=config["mask_ind"],
        tokens_in=tokens_in,
        actions=data[f"{run}/actions"],
        parameters=np.stack([data[f"{run}/act/{name}"] for name in PARAMETERS], axis=-1),
        sampled=data[f"{run}/sampled_ids"].astype(np.int32),
        tokens_out=data[f"{run}/masked_ids_out"].astype(np.int32),
        token_noise=noise.reshape(*tokens_in.shape, -1),
        confidence_noise=data[f"{run}/gumbel_conf"],
        first_log_probabilities=data[f"{run}/step0_logits_after_cfg"],
        final_features=data[f"{run}/final_feat_mean"],
    )


def _tensor(dtype: Any, *shape: int) -> TensorInfo:
    return TensorInfo(dtype=dtype, shape=("batch", *shape))


def _transformer_info(model: UViT) -> GraphInfo:
    condition = {"condition": _tensor("int32")}
    if not model.class_conditional:
        condition = {"text": _tensor("float32", model.extras, model.context_width)}
    n = model.num_tokens
    return GraphInfo(
        file="transformer.onnx",
        inputs={"tokens": _tensor("int32", n), **condition},
        outputs={
            "logits": _tensor("float32", n, model.codebook_size),
            "features": _tensor("float32", n, model.embed_dim),
        },
    )


def _policy_info(net: PolicyNet) -> GraphInfo:
    features = _tensor("float32", net.grid_size**2, net.in_channels)
    return GraphInfo(
        file="policy.onnx",
        inputs={"features": features, "step": _tensor("int32")},
        outputs={"action": _tensor("float32", 4)},
    )


def _example(info: TensorInfo) -> Tensor:
    shape = (2, *(int(size) for size in info.shape[1:]))
    return torch.zeros(shape, dtype=getattr(torch, info.dtype))


def _engine(backend: str, name: str, module: nn.Module, info: GraphInfo, folder: Path) -> Engine:
    if backend == "torch":
        return TorchEngine(name, module, info)
    inputs = {key: _example(value) for key, value in info.inputs.items()}
    described = export_graph(name, Graph(module, inputs, tuple(info.outputs)), folder)
    assert described == info
    return OnnxRuntimeEngine(name, folder / described.file, described, threads=1)


@pytest.fixture(scope="module")
def engines(
    class_uvit: UViT,
    text_uvit: UViT,
    policy_net: PolicyNet,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str, str], Engine]]:
    """A recorded model (``class``, ``text`` or ``policy``) behind a backend, made once."""
    models = {
        "class": (class_uvit, _transformer_info(class_uvit)),
        "text": (text_uvit, _transformer_info(text_uvit)),
        "policy": (policy_net, _policy_info(policy_net)),
    }
    made: dict[tuple[str, str], Engine] = {}

    def engine(backend: str, name: str) -> Engine:
        if (backend, name) not in made:
            module, info = models[name]
            graph, folder = info.file.removesuffix(".onnx"), tmp_path_factory.mktemp(name)
            made[backend, name] = _engine(backend, graph, module, info, folder)
        return made[backend, name]

    yield engine
    for one in made.values():
        one.close()


@pytest.fixture(scope="module", params=[(b, r) for b in BACKENDS for r in ROLLOUTS], ids="-".join)
def passes(
    request: pytest.FixtureRequest,
    engines: Callable[[str, str], Engine],
    recorded: Recorded,
) -> Passes:
    """Both models at every recorded step, each step as one pass at batch 2B."""
    backend, rollout = request.param
    official = _official(rollout, recorded)
    condition = np.concatenate([official.condition, official.unconditional])
    transformer, batch = engines(backend, rollout.partition("-")[0]), len(official.condition)
    device, logits, features, actions = CpuDevice(), [], [], []
    for step, tokens in enumerate([*official.tokens_in, official.tokens_out[-1]]):
        both = np.concatenate([tokens, tokens])
        fed = dict(zip(transformer.inputs, (both, condition), strict=True))
        out = run_once(device, transformer, fed)
        logits.append(out["logits"])
        features.append(out["features"][:batch])
        if rollout == "class" and step < official.steps:
            fed = {"features": features[-1], "step": np.full(batch, step, np.int32)}
            actions.append(run_once(device, engines(backend, "policy"), fed)["action"])
    halves = np.stack(logits[:-1])
    return Passes(
        official=official,
        conditional=halves[:, :batch],
        unconditional=halves[:, batch:],
        features=np.stack(features),
        # The official policy knows the 16×16 grid only, so the text actions are inputs.
        actions=np.stack(actions) if actions else official.actions,
    )


def _masked(official: Official) -> npt.NDArray[np.bool_]:
    masked: npt.NDArray[np.bool_] = official.tokens_in == official.mask_token
    assert masked[0].all()
    assert masked[1:].any(axis=(1, 2)).all()
    return masked


def _log_softmax(logits: Array) -> Array:
    found: Array = torch.from_numpy(logits).log_softmax(dim=-1).numpy()
    return found


def _confidences(passes: Passes) -> Array:
    """The official confidences ``[T, B, N]`` of the recorded tokens."""
    official, masked = passes.official, _masked(passes.official)
    tokens = np.where(masked, official.sampled, 0)[..., None]
    chosen = np.take_along_axis(_log_softmax(passes.guided()), tokens, -1)[..., 0]
    noisy = chosen + passes.parameters()[:, :, 1, None] * official.confidence_noise
    return np.where(masked, noisy, np.inf).astype(np.float32)


@pytest.mark.parametrize("passes", [(b, "class") for b in BACKENDS], ids="-".join, indirect=True)
def test_the_policy_gives_the_recorded_actions(passes: Passes) -> None:
    np.testing.assert_allclose(passes.actions, passes.official.actions, rtol=0, atol=1e-4)


def test_actions_become_the_recorded_parameters(passes: Passes) -> None:
    np.testing.assert_allclose(passes.parameters(), passes.official.parameters, rtol=0, atol=1e-4)


def test_guidance_gives_the_recorded_probabilities(passes: Passes) -> None:
    expected = passes.official.first_log_probabilities.astype(np.float32)
    half_precision = 2.0**-11  # largest relative error of rounding to float16
    found = _log_softmax(passes.guided()[0])
    np.testing.assert_allclose(found, expected, rtol=half_precision, atol=1e-4)


def test_the_last_features_have_the_recorded_mean(passes: Passes) -> None:
    mean = passes.features[-1].mean(axis=1)
    np.testing.assert_allclose(mean, passes.official.final_features, rtol=0, atol=1e-4)


def test_the_recorded_noise_gives_the_recorded_tokens(passes: Passes) -> None:
    official, masked = passes.official, _masked(passes.official)
    temperature = passes.parameters()[:, :, 2, None, None]
    noisy = _log_softmax(passes.guided() / temperature) + official.token_noise
    expected = np.where(masked, noisy.argmax(-1), official.tokens_in)
    np.testing.assert_array_equal(expected, official.sampled)


@pytest.mark.parametrize("halves", [1, 2])
def test_remask_masks_what_was_masked(passes: Passes, halves: int) -> None:
    official, parameters = passes.official, passes.parameters()
    for step, confidence in enumerate(_confidences(passes)):
        found = np.empty((halves * confidence.shape[0], confidence.shape[1]), np.int32)
        remask(
            confidence=confidence,
            sampled=official.sampled[step],
            parameters=parameters[step],
            mask=np.ones(confidence.shape, np.uint8),
            mask_token=official.mask_token,
            at_least_one=0,
            next_tokens=found,
            ties=0,
        )
        np.testing.assert_array_equal(found, np.tile(official.tokens_out[step], (halves, 1)))


def test_every_step_starts_where_the_last_one_ended(passes: Passes) -> None:
    """The recordings are one generation each, not separate steps."""
    official = passes.official
    np.testing.assert_array_equal(official.tokens_in[1:], official.tokens_out[:-1])


def _intervals(logits: Array, tokens: Array) -> Array:
    """Where each token's interval of the inverse CDF starts and ends: ``[2, …]`` float64."""
    weights = torch.from_numpy(logits).double().softmax(dim=-1).numpy()
    ends = weights.cumsum(-1)
    chosen = tokens[..., None]
    edges = [np.take_along_axis(edge, chosen, -1)[..., 0] for edge in (ends - weights, ends)]
    return np.stack(edges)


def _rows(passes: Passes) -> Iterator[tuple[int, int, int]]:
    """Step, image and position of every masked token."""
    yield from map(tuple, np.argwhere(_masked(passes.official)).tolist())


def test_sample_row_takes_the_recorded_tokens(passes: Passes) -> None:
    """Given the uniform in the middle of the recorded token's interval."""
    official, guided, confidences = passes.official, passes.guided(), _confidences(passes)
    temperatures, scales = passes.parameters()[:, :, 2], passes.parameters()[:, :, 1]
    middles = _intervals(guided / temperatures[..., None, None], official.sampled).mean(axis=0)
    for row in _rows(passes):
        token, log_probability = sample_row(
            guided[row], temperatures[row[:2]], np.float32(middles[row])
        )
        assert token == official.sampled[row]
        confidence = log_probability + scales[row[:2]] * official.confidence_noise[row]
        assert confidence == pytest.approx(confidences[row], rel=0, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 1.7])
def test_sample_row_tells_the_probability_of_what_it_samples(
    passes: Passes, temperature: float
) -> None:
    """At temperature 1, whatever the temperature of sampling."""
    guided, random = passes.guided()[-1, 0], np.random.default_rng(0)
    log_probabilities = _log_softmax(guided)
    for logits, expected in zip(guided, log_probabilities, strict=True):
        uniform = random.random(dtype=np.float32)
        token, found = sample_row(logits, np.float32(temperature), np.float32(uniform))
        assert found == pytest.approx(expected[token], rel=0, abs=1e-5)


def _sample(passes: Passes, step: int, seeds: Array) -> tuple[Array, Array]:
    """Ids and confidences ``[B, N]`` by the runtime's kernel, guidance included."""
    tokens = passes.official.tokens_in[step]
    sampled, error = np.empty_like(tokens), np.zeros(1, np.int32)
    confidence = np.empty(tokens.shape, np.float32)
    sample_tokens(
        conditional=np.ascontiguousarray(passes.conditional[step]),
        unconditional=np.ascontiguousarray(passes.unconditional[step]),
        tokens=tokens,
        parameters=passes.parameters()[step],
        seeds=seeds,
        step=step,
        mask_token=passes.official.mask_token,
        sampled=sampled,
        confidence=confidence,
        error=error,
        confidence_of=0,
        mask=np.ones(tokens.shape, np.uint8),
        resample=0,
    )
    assert error[0] == 0
    return sampled, confidence


def test_sample_tokens_follows_the_official_formulas_at_every_step(passes: Passes) -> None:
    """With noise of its own: each token's interval holds its uniform; confidence as above."""
    official, guided, parameters = passes.official, passes.guided(), passes.parameters()
    seeds = np.array([5, 2**40 + 6], np.uint64)
    for step, masked in enumerate(_masked(official)):
        sampled, confidence = _sample(passes, step, seeds)
        np.testing.assert_array_equal(sampled[~masked], official.tokens_in[step][~masked])
        assert np.isposinf(confidence[~masked]).all()
        noise = [[uniforms(s, step, n) for n in range(masked.shape[1])] for s in seeds]
        u, v = np.array(noise, np.float64).transpose(2, 0, 1)  # [B, N] each
        starts, ends = _intervals(guided[step] / parameters[step, :, 2, None, None], sampled)
        assert ((starts - 1e-5 <= u) & (u <= ends + 1e-5))[masked].all()
        chosen = np.take_along_axis(_log_softmax(guided[step]), sampled[..., None], -1)[..., 0]
        expected = chosen - parameters[step, :, 1, None] * np.log(-np.log(v))
        np.testing.assert_allclose(confidence[masked], expected[masked], rtol=0, atol=2e-4)
