"""Actor and critic as they begin, and the actor that is read from a bundle's graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from tests.calibration.policy.stand_ins import info, randomised
from tests.cuda.torch_engine import load
from tests.runtime.verify.rehash import write_manifest

from fewstep.calibration.policy.networks import Shape, actor_of, new_actor, new_critic
from fewstep.calibration.policy.store import add_policy
from fewstep.export.models import FixedPolicy, PolicyNet
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import CalibrationError

_FEATURES = torch.randn((6, 16, 32), generator=torch.Generator().manual_seed(1))
_STEP = torch.tensor([0, 1, 2, 3, 7, 15], dtype=torch.int32)


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_new_actor_does_nothing_yet(adaptive: bool) -> None:
    actor = new_actor(Shape(4, 32, 3), 5, adaptive=adaptive)
    assert torch.equal(actor(_FEATURES, _STEP), torch.zeros(6, 3))
    assert isinstance(actor, PolicyNet if adaptive else FixedPolicy)


def test_a_new_critic_expects_nothing_and_has_the_actors_shape(tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    shape = Shape.of(bundle.graph("policy"))
    assert shape == Shape(side=4, width=32, actions=4)
    actor = actor_of(bundle, "policy")
    critic = new_critic(shape, actor.sizes)
    assert torch.equal(critic(_FEATURES, _STEP), torch.zeros(6, 1))
    shapes = {key: value.shape for key, value in critic.state_dict().items()}
    different = {key for key, value in actor.state_dict().items() if value.shape != shapes[key]}
    assert different == {"linear3.weight", "linear3.bias"}


def test_a_fixed_policy_is_a_row_per_step_and_then_its_last() -> None:
    policy = randomised(FixedPolicy(3), seed=0)
    rows = policy.state_dict()["actions"]
    found = policy(_FEATURES, _STEP)
    torch.testing.assert_close(found, rows[[0, 1, 2, 2, 2, 2]])
    torch.testing.assert_close(policy(10 * _FEATURES + 3, _STEP), found)


# --- from a graph


def test_the_bundles_actor_is_the_checkpoints(
    tiny_bundle: Path, tiny_checkpoints: dict[str, Any]
) -> None:
    exported = load(tiny_checkpoints).policy
    assert exported is not None
    found = actor_of(Bundle.read(tiny_bundle), "policy").state_dict()
    assert found.keys() == exported.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in exported.state_dict().items())


@pytest.mark.parametrize(
    ("hidden", "channels", "widths"),
    [
        (8, 128, (1024, 512)),
        (32, 128, (1024, 512)),  # the features' own width: no embedding
        (512, 128, (1024, 512)),  # layers of equal shapes
        (16, 8, (12, 6)),
        (16, 64, (16, 4)),  # the step embedding reads as many numbers as the first layer
        (16, 4, (8, 8)),  # the modulations have the shape of the first layer
    ],
)
def test_weights_of_any_width_are_found_again(
    bundle_copy: Path, hidden: int, channels: int, widths: tuple[int, int]
) -> None:
    actor = randomised(PolicyNet(32, 4, hidden, 4, channels, widths), seed=hidden)
    assert isinstance(actor, PolicyNet)
    assert (actor.x_embedder is None) == (hidden == 32)
    changed = add_policy(Bundle.read(bundle_copy), "policy-new", actor, info())
    found = actor_of(changed, "policy-new")
    assert all(torch.equal(found.state_dict()[k], v) for k, v in actor.state_dict().items())
    torch.testing.assert_close(found(_FEATURES, _STEP), actor(_FEATURES, _STEP))


def test_an_actor_that_was_never_trained_is_found_too(bundle_copy: Path) -> None:
    """Its zero weights and biases are one and the same to an optimizer of graphs."""
    bundle = Bundle.read(bundle_copy)
    changed = add_policy(bundle, "policy-new", new_actor(Shape(4, 32, 4), 3, adaptive=True), info())
    assert torch.equal(actor_of(changed, "policy-new")(_FEATURES, _STEP), torch.zeros(6, 4))


def test_a_fixed_policys_graph_is_refused(bundle_copy: Path) -> None:
    policy = randomised(FixedPolicy(3), seed=0)
    changed = add_policy(Bundle.read(bundle_copy), "policy-fixed", policy, info())
    with pytest.raises(CalibrationError, match="graph 'policy-fixed' is no policy network of"):
        actor_of(changed, "policy-fixed")


def _scaled_output(model: onnx.ModelProto) -> None:
    """Other actions by the same weights."""
    last = model.graph.node[-1]
    action = last.output[0]
    last.output[0] = "raw"
    model.graph.node.append(helper.make_node("Mul", ["raw", "raw"], [action], name="square"))


def _nan_weight(model: onnx.ModelProto) -> None:
    weight = max(model.graph.initializer, key=lambda each: len(each.dims))
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = float("nan")
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def _no_weights(model: onnx.ModelProto) -> None:
    del model.graph.node[:]
    action = model.graph.output[0].name
    zeros = numpy_helper.from_array(torch.zeros(4, 4).numpy(), "zeros")
    model.graph.initializer.append(zeros)
    model.graph.node.append(helper.make_node("Identity", ["zeros"], [action], name="nothing"))


@pytest.mark.parametrize("change", [_scaled_output, _nan_weight, _no_weights])
def test_a_foreign_graph_is_refused(
    bundle_copy: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    model = onnx.load(bundle_copy / "policy.onnx")
    change(model)
    onnx.save(model, bundle_copy / "policy.onnx")
    write_manifest(bundle_copy, Bundle.read(bundle_copy).manifest.model_dump())
    with pytest.raises(CalibrationError, match="weights cannot be read; .*--start scratch"):
        actor_of(Bundle.read(bundle_copy), "policy")


def test_another_graph_of_the_bundle_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    with pytest.raises(CalibrationError, match="graph 'decoder' is no policy network"):
        actor_of(Bundle.read(copy), "decoder")
