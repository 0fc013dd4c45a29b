"""PolicyNet: actions of the official class, its keys, other grids, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fewstep.export.models import PolicyNet

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]


def randomised(**arguments: Any) -> PolicyNet:
    """A policy whose output layer and modulation are not zero."""
    net = PolicyNet(**arguments).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return net


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_gives_the_official_actions_at_every_step(
    dtype: torch.dtype, policy_net: PolicyNet, recorded: Recorded
) -> None:
    data = recorded("adanat_policy")
    features = torch.from_numpy(data["in/feat"])
    with torch.no_grad():
        actions = [
            policy_net(features, torch.full((2,), int(step), dtype=dtype))
            for step in data["in/timesteps"]
        ]
    np.testing.assert_allclose(
        torch.stack(actions), data["out/actions_from_in_feat"], rtol=0, atol=1e-4
    )


def test_each_image_may_be_at_its_own_step(policy_net: PolicyNet, recorded: Recorded) -> None:
    data = recorded("adanat_policy")
    with torch.no_grad():
        actions = policy_net(torch.from_numpy(data["in/feat"]), torch.tensor([6, 1]))
    expected = data["out/actions_from_in_feat"]
    np.testing.assert_allclose(
        actions, np.stack([expected[6, 0], expected[1, 1]]), rtol=0, atol=1e-4
    )


def test_has_exactly_the_official_keys(policy_net: PolicyNet, recorded: Recorded) -> None:
    official = {
        key.removeprefix("sd/") for key in recorded("adanat_policy") if key.startswith("sd/")
    }
    assert policy_net.state_dict().keys() == official


@pytest.mark.parametrize("grid", [8, 4, 2])
def test_another_even_grid_changes_one_matrix_only(grid: int) -> None:
    reference = PolicyNet(in_channels=6, hidden_size=8)
    net = randomised(in_channels=6, hidden_size=8, grid_size=grid)
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    official = {key: value.shape for key, value in reference.state_dict().items()}
    assert shapes.keys() == official.keys()
    assert {key for key in shapes if shapes[key] != official[key]} == {"linear1.weight"}
    assert shapes["linear1.weight"] == (1024, (grid // 2) ** 2 * 128)


@pytest.mark.parametrize("grid", [8, 4])
def test_another_even_grid_runs_and_reads_features_and_step(grid: int) -> None:
    net = randomised(in_channels=6, hidden_size=8, grid_size=grid)
    features = torch.linspace(-1, 1, 2 * grid**2 * 6).reshape(2, grid**2, 6).sin()
    with torch.no_grad():
        action = net(features, torch.tensor([0, 0]))
        later = net(features, torch.tensor([5, 5]))
        flipped = net(features.flip(1), torch.tensor([0, 0]))
    assert action.shape == (2, 4)
    assert not torch.allclose(action, later, atol=1e-4)
    assert not torch.allclose(action, flipped, atol=1e-4)


@pytest.mark.parametrize("grid", [1, 7, 15])
def test_an_odd_grid_is_refused(grid: int) -> None:
    with pytest.raises(ValueError, match=f"grid_size must be even, got {grid}"):
        PolicyNet(in_channels=6, hidden_size=8, grid_size=grid)


def test_other_widths_change_the_last_layers_only() -> None:
    reference = PolicyNet(in_channels=6, hidden_size=8, grid_size=4)
    net = randomised(in_channels=6, hidden_size=8, grid_size=4, channels=5, widths=[12, 7])
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    official = {key: value.shape for key, value in reference.state_dict().items()}
    assert shapes.keys() == official.keys()
    changed = {key: shape for key, shape in shapes.items() if shape != official[key]}
    assert changed == {
        "pw_conv.weight": (5, 8, 1, 1),
        "pw_conv.bias": (5,),
        "linear1.weight": (12, 2 * 2 * 5),
        "linear1.bias": (12,),
        "adaLN2.adaLN_modulation.1.weight": (2 * 12, 8),
        "adaLN2.adaLN_modulation.1.bias": (2 * 12,),
        "linear2.weight": (7, 12),
        "linear2.bias": (7,),
        "adaLN3.adaLN_modulation.1.weight": (2 * 7, 8),
        "adaLN3.adaLN_modulation.1.bias": (2 * 7,),
        "linear3.weight": (4, 7),
    }
    assert net.sizes == {"hidden_size": 8, "channels": 5, "widths": (12, 7)}
    with torch.no_grad():
        assert net(torch.ones(3, 16, 6), torch.arange(3)).shape == (3, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": 0}, "channels must be a positive integer, got 0"),
        ({"channels": 32.0}, "channels must be a positive integer, got 32.0"),
        ({"widths": [64]}, r"widths must be two positive integers, got \[64\]"),
        ({"widths": [64, 0]}, r"widths must be two positive integers, got \[64, 0\]"),
        ({"widths": 64}, "widths must be two positive integers, got 64"),
    ],
)
def test_widths_that_are_none_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyNet(in_channels=6, hidden_size=8, grid_size=4, **wrong)


def test_features_of_the_hidden_width_are_not_embedded() -> None:
    net = randomised(in_channels=8, hidden_size=8, grid_size=4)
    assert not [key for key in net.state_dict() if key.startswith("x_embedder")]
    with torch.no_grad():
        assert net(torch.ones(3, 16, 8), torch.arange(3)).shape == (3, 4)


def test_an_untrained_policy_does_nothing() -> None:
    net = PolicyNet(in_channels=6, hidden_size=8, grid_size=4)
    with torch.no_grad():
        action = net(torch.randn(2, 16, 6), torch.tensor([0, 7]))
    assert torch.equal(action, torch.zeros(2, 4))
