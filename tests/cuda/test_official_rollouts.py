"""The official AdaNAT generations, replayed step by step through the CUDA kernels.

Covered: the recorded actions become the recorded parameters; the recorded noise gives the recorded
tokens; a uniform within a recorded token's interval gives that token, and its log-probability with
the recorded noise masks what was masked; all kernels in a row; and the kernel's own noise follows
the same formulas. The logits are those of the recorded models in PyTorch; the bars are those that
``tests/export/test_official_rollouts.py`` sets for the CPU kernels.

The official order of computation, with conditional logits c and unconditional u, guidance scale s,
sampling temperature τ, masking temperature μ and recorded Gumbel noise g:

    l          = c + s·(c − u)
    token      = argmax(log softmax(l / τ) + g_tokens)
    confidence = log_softmax(l)[token] + μ·g_confidence, +∞ where known
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.families.masked.model import MaskedPolicyInfo

sys.path.append(str(Path(__file__).parent))
if TYPE_CHECKING:
    from tests.cuda import kernel_runs as runs
else:
    import kernel_runs as runs

Array = npt.NDArray[Any]

_DATA = Path(__file__).parents[1] / "data"
_ROLLOUTS = ("class", "text-heu0", "text-heu1")
_PARAMETERS = ("manual_gen_ratios", "manual_temp", "manual_samp_temp", "manual_cfg")
"""The official names, in the order of the columns of ``[B, 4]`` parameters."""


@dataclass(frozen=True)
class Rollout:
    """One recorded generation: T steps, B images, N tokens, V codes.

    ``tokens_in``, ``sampled`` and ``tokens_out`` are ids ``[T, B, N]``, ``actions`` and
    ``parameters`` ``[T, B, 4]``, ``token_noise [T, B, N, V]``, ``confidence_noise [T, B, N]``;
    the logits ``[T, B, N, V]`` are what the model says of ``tokens_in``.
    """

    residual: bool
    mask_token: int
    tokens_in: Array
    actions: Array
    parameters: Array
    sampled: Array
    tokens_out: Array
    token_noise: Array
    confidence_noise: Array
    conditional: Array
    unconditional: Array

    @property
    def steps(self) -> int:
        return len(self.tokens_in)

    @property
    def masked(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.tokens_in == self.mask_token)


def _recorded(name: str) -> dict[str, Array]:
    with np.load(_DATA / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


@pytest.fixture(scope="module", params=_ROLLOUTS)
def rollout(request: pytest.FixtureRequest) -> Rollout:
    """A recorded generation with the logits of its model at every step."""
    name = request.param
    data = _recorded("adanat_rollout_class" if name == "class" else "adanat_text")
    config = json.loads(str(data["cfg"]))
    run = "out" if name == "class" else f"out/{name.removeprefix('text-')}"
    residual = config["heu"] if name == "class" else int(name[-1])
    tokens_in = data[f"{run}/masked_ids_in"].astype(np.int32)
    logits, images = _logits(name), tokens_in.shape[1]
    noise = data[f"{run}/gumbel_tokens_f16"].astype(np.float32)
    return Rollout(
        residual=bool(residual),
        mask_token=config["mask_ind"],
        tokens_in=tokens_in,
        actions=data[f"{run}/actions"],
        parameters=np.stack([data[f"{run}/act/{name}"] for name in _PARAMETERS], axis=-1),
        sampled=data[f"{run}/sampled_ids"].astype(np.int32),
        tokens_out=data[f"{run}/masked_ids_out"].astype(np.int32),
        token_noise=noise.reshape(*tokens_in.shape, -1),
        confidence_noise=data[f"{run}/gumbel_conf"],
        conditional=np.ascontiguousarray(logits[:, :images]),
        unconditional=np.ascontiguousarray(logits[:, images:]),
    )


def _logits(name: str) -> Array:
    """``[T, 2B, N, V]``: those stored beside the bundles, else computed by PyTorch."""
    stored = Path(os.environ.get("FEWSTEP_TEST_BUNDLES", "")) / "official-logits.npz"
    if stored.is_file():
        with np.load(stored, allow_pickle=False) as archive:
            return np.asarray(archive[name])
    pytest.importorskip("torch")
    from tests.gpu.official_logits import logits

    return logits(name)


# --- the kernels


def _parameters(
    device: CudaDevice, action: Array, step: int, steps: int, *, residual: bool
) -> Array:
    found = runs.launch(
        device,
        "policy_parameters",
        inputs={"action": action},
        outputs={
            "parameters": np.full(action.shape, -1, np.float32),
            "error": np.zeros(1, np.int32),
        },
        **MaskedPolicyInfo(residual=residual).offsets(step, steps),
    )
    assert found["error"][0] == 0
    return found["parameters"]


def _all_parameters(device: CudaDevice, rollout: Rollout) -> Array:
    """``[T, B, 4]``."""
    steps = range(rollout.steps)
    return np.stack(
        [
            _parameters(device, rollout.actions[t], t, rollout.steps, residual=rollout.residual)
            for t in steps
        ]
    )


def _step(rollout: Rollout, step: int, parameters: Array) -> runs.Sampling:
    """The sampling of one step with noise of its own."""
    return runs.Sampling(
        conditional=rollout.conditional[step],
        unconditional=rollout.unconditional[step],
        tokens=rollout.tokens_in[step],
        parameters=parameters[step],
        seeds=np.array([5, 2**40 + 6], np.uint64),
        step=step,
        mask_token=rollout.mask_token,
    )


def _remask(
    device: CudaDevice,
    rollout: Rollout,
    step: int,
    confidence: Array,
    parameters: Array,
    halves: int,
) -> Array:
    found = runs.launch(
        device,
        "remask",
        inputs={
            "confidence": confidence.astype(np.float32),
            "sampled": rollout.sampled[step],
            "parameters": parameters[step],
            "mask": np.ones(confidence.shape, np.uint8),
        },
        outputs={"next_tokens": np.full((halves * 2, confidence.shape[1]), -1, np.int32)},
        mask_token=rollout.mask_token,
        at_least_one=0,
        ties=0,
    )
    return found["next_tokens"]


def _log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


# --- actions


def test_actions_become_the_recorded_parameters(device: CudaDevice, rollout: Rollout) -> None:
    found = _all_parameters(device, rollout)
    np.testing.assert_allclose(found, rollout.parameters, rtol=0, atol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_any_action_becomes_the_official_parameters(device: CudaDevice, residual: bool) -> None:
    data = _recorded("adanat_policy")
    actions = data["in/actions_for_bias"]
    for step, action in enumerate(actions):
        found = _parameters(device, action, step, len(actions), residual=residual)
        expected = [data[f"out/bias_heu{int(residual)}/{name}"][step] for name in _PARAMETERS]
        np.testing.assert_allclose(found, np.stack(expected, -1), rtol=1e-5, atol=1e-5)


# --- tokens


def test_the_recorded_noise_gives_the_recorded_tokens(device: CudaDevice, rollout: Rollout) -> None:
    """With c/τ + g and u/τ + g for c and u, guidance gives l/τ + g, and temperature 0 its maximum:
    the sum over the codes in log softmax moves none of them."""
    parameters = _all_parameters(device, rollout)
    for step in range(rollout.steps):
        temperature, noise = parameters[step, :, 2, None, None], rollout.token_noise[step]
        greedy = parameters.copy()
        greedy[:, :, 2] = 0
        case = _step(rollout, step, greedy)
        noisy = replace(
            case,
            conditional=case.conditional / temperature + noise,
            unconditional=case.unconditional / temperature + noise,
        )
        found = runs.sample(device, noisy)
        np.testing.assert_array_equal(found.tokens, rollout.sampled[step])
        assert found.error == 0


def _recorded_confidences(rollout: Rollout, parameters: Array, step: int) -> Array:
    """The official confidences ``[B, N]`` of the recorded tokens."""
    case, masked = _step(rollout, step, parameters), rollout.masked[step]
    tokens = np.where(masked, rollout.sampled[step], 0)[..., None]
    chosen = np.take_along_axis(_log_softmax(case.guided()), tokens, -1)[..., 0]
    noisy = chosen + parameters[step, :, 1, None] * rollout.confidence_noise[step]
    return np.where(masked, noisy, np.inf)


def _seeds_in(starts: Array, ends: Array, step: int) -> Array:
    """Seeds whose uniform for position 0 lies near the middle of each interval."""
    candidates = np.arange(2**17, dtype=np.uint64)
    uniforms = runs.uniforms(candidates, step, 0)[0]
    order = uniforms.argsort()
    places = np.searchsorted(uniforms[order], (starts + ends) / 2)
    chosen = order[places.clip(0, len(order) - 1)]
    inside = (starts + 1e-6 < uniforms[chosen]) & (uniforms[chosen] < ends - 1e-6)
    assert inside.all(), "an interval is too narrow for this many seeds"
    return np.asarray(candidates[chosen])


def _log_probabilities(device: CudaDevice, rollout: Rollout, step: int, parameters: Array) -> Array:
    """Confidences ``[B, N]`` without noise, after checking that the recorded tokens are sampled.

    Every position is launched as an image of its own, with a seed that leads to its token.
    """
    case, shape = _step(rollout, step, parameters), rollout.tokens_in[step].shape
    scaled = case.guided() / case.parameters[:, 2, None, None]
    weights = np.exp(_log_softmax(scaled))
    tokens = rollout.sampled[step][..., None]
    ends = np.take_along_axis(weights.cumsum(-1), tokens, -1).ravel()
    starts = ends - np.take_along_axis(weights, tokens, -1).ravel()
    rows, seeds = case.masked.ravel(), np.zeros(case.tokens.size, np.uint64)
    seeds[rows] = _seeds_in(starts[rows], ends[rows], step)
    each = case.parameters.repeat(shape[1], axis=0)
    each[:, 1] = 0
    found = runs.sample(
        device,
        replace(
            case,
            conditional=case.conditional.reshape(-1, 1, scaled.shape[2]),
            unconditional=case.unconditional.reshape(-1, 1, scaled.shape[2]),
            tokens=case.tokens.reshape(-1, 1),
            parameters=each,
            seeds=seeds,
        ),
    )
    np.testing.assert_array_equal(found.tokens.reshape(shape), rollout.sampled[step])
    assert found.error == 0
    return np.asarray(found.confidence.reshape(shape))


def test_uniforms_in_the_recorded_intervals_give_the_recorded_tokens_and_confidences(
    device: CudaDevice, rollout: Rollout
) -> None:
    parameters = _all_parameters(device, rollout)
    for step in range(rollout.steps):
        found = _log_probabilities(device, rollout, step, parameters)
        noisy = found + parameters[step, :, 1, None] * rollout.confidence_noise[step]
        expected = _recorded_confidences(rollout, parameters, step)
        np.testing.assert_allclose(noisy, expected, rtol=0, atol=1e-4)


def test_own_noise_follows_the_official_formulas_at_every_step(
    device: CudaDevice, rollout: Rollout
) -> None:
    parameters = _all_parameters(device, rollout)
    for step in range(rollout.steps):
        case = _step(rollout, step, parameters)
        found = runs.sample(device, case)
        runs.assert_follows_the_formulas(case, found)
        runs.assert_same(found, runs.sample_on_cpu(case))


# --- what is masked again


@pytest.mark.parametrize("halves", [1, 2])
def test_remask_masks_what_was_masked(device: CudaDevice, rollout: Rollout, halves: int) -> None:
    parameters = _all_parameters(device, rollout)
    for step in range(rollout.steps):
        confidence = _recorded_confidences(rollout, parameters, step)
        found = _remask(device, rollout, step, confidence, parameters, halves)
        np.testing.assert_array_equal(found, np.tile(rollout.tokens_out[step], (halves, 1)))


def test_all_kernels_in_a_row_leave_the_recorded_tokens(
    device: CudaDevice, rollout: Rollout
) -> None:
    """From nothing but masks to the last step, each step on what the one before has left."""
    parameters, shape = _all_parameters(device, rollout), rollout.tokens_in[0].shape
    tokens = runs.launch(
        device,
        "initial_tokens",
        inputs={"given": np.zeros(shape, np.int32), "mask": np.ones(shape, np.uint8)},
        outputs={"tokens": np.full(shape, -1, np.int32), "error": np.zeros(1, np.int32)},
        codebook_size=rollout.conditional.shape[-1],
        mask_token=rollout.mask_token,
    )["tokens"]
    for step in range(rollout.steps):
        np.testing.assert_array_equal(tokens, rollout.tokens_in[step])
        found = _log_probabilities(device, rollout, step, parameters)
        noisy = found + parameters[step, :, 1, None] * rollout.confidence_noise[step]
        tokens = _remask(device, rollout, step, noisy, parameters, halves=1)
    np.testing.assert_array_equal(tokens, rollout.tokens_out[-1])
