"""Feature networks: EfficientNet-Lite0 against its package, timm's through a fake, frozen both.

The real EfficientNet-Lite0 is opened once; ``timm`` is not installed here, so a module that only
records what it was asked for stands in for it.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.calibration.policy.stand_ins import SmallNetwork, random_images
from torch import Tensor, nn

from fewstep.calibration.policy.features import FeatureNetwork, Features, open_network
from fewstep.runtime.errors import CalibrationError, MissingDependencyError

_CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lite0() -> FeatureNetwork:
    """The real network, for 32×32 pixels."""
    return open_network("efficientnet-lite0", 32)


# --- EfficientNet-Lite0


def test_pooled_features_are_the_packages_averaged(lite0: Any) -> None:
    """On images of the network's own size, where nothing is scaled."""
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    with torch.no_grad():
        given = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
        expected = lite0.network.extract_features(given).mean((2, 3))
    found = lite0.pooled(images, _CPU)
    assert found.shape == (3, 1280) == (3, lite0.width)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_maps_are_of_three_scales(lite0: FeatureNetwork) -> None:
    found = lite0.features(random_images(2)[0], _CPU)
    assert tuple(each.shape[1] for each in found.maps) == lite0.channels
    assert [each.shape[2:] for each in found.maps] == [(8, 8), (4, 4), (2, 2)]
    np.testing.assert_array_equal(found.pooled.numpy(), lite0.pooled(random_images(2)[0], _CPU))


def test_small_images_are_enlarged_bilinearly() -> None:
    """Pillow says what that is, to within its rounding to whole numbers."""
    seen: list[Tensor] = []

    class Looking(SmallNetwork):
        input_size = 32

        def _extract(self, images: Tensor) -> Features:
            seen.append(images)
            return super()._extract(images)

    image = random_images(1)[0][0]
    Looking().features(image[None], _CPU)
    expected = Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)
    difference = seen[0][0].permute(1, 2, 0).numpy() - np.asarray(expected, np.float32)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(("side", "expected"), [(8, 64), (64, 64), (100, 100), (1024, 224)])
def test_input_size_follows_the_images_within_bounds(
    side: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    monkeypatch.setattr(EfficientNet, "from_pretrained", lambda *_, **__: nn.Identity())
    assert open_network("efficientnet-lite0", side).input_size == expected


# --- any network


@pytest.mark.parametrize("name", ["lite0", "small"])
def test_networks_are_frozen(name: str, lite0: FeatureNetwork) -> None:
    network = lite0 if name == "lite0" else SmallNetwork()
    assert not network.training
    assert not any(each.requires_grad for each in network.parameters())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = network.features(random_images(2)[0], _CPU)
    assert not any(each.requires_grad for each in (*found.maps, found.pooled))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_features_do_not_depend_on_how_many_images_there_are() -> None:
    network, images = SmallNetwork(), random_images(300)[0]  # more than go through at once
    together = network.features(images, _CPU)
    for row in (0, 127, 128, 299):
        alone = network.features(images[row : row + 1], _CPU)
        torch.testing.assert_close(together.pooled[row], alone.pooled[0])
        for a, b in zip(together.maps, alone.maps, strict=True):
            torch.testing.assert_close(a[row], b[0])
    np.testing.assert_array_equal(network.pooled(images, _CPU), together.pooled.numpy())


def test_rows_of_features_are_rows_of_every_part() -> None:
    maps = (torch.arange(24.0).reshape(4, 2, 3, 1), torch.arange(4.0).reshape(4, 1, 1, 1))
    found = Features(maps, torch.arange(8.0).reshape(4, 2))[torch.tensor([3, 0])]
    assert torch.equal(found.maps[0], maps[0][[3, 0]])
    assert torch.equal(found.maps[1].flatten(), torch.tensor([3.0, 0.0]))
    assert found.pooled.tolist() == [[6, 7], [0, 1]]


@pytest.mark.parametrize("spec", ["efficientnet", "resnet50", "", "EfficientNet-Lite0"])
def test_unknown_networks_are_refused(spec: str) -> None:
    with pytest.raises(CalibrationError, match="unknown feature network .*efficientnet-lite0"):
        open_network(spec, 8)


@pytest.mark.parametrize(
    ("spec", "module", "message"),
    [
        ("timm:resnet18", "timm", "timm is not installed.*pip install 'timm'"),
        (
            "efficientnet-lite0",
            "efficientnet_lite_pytorch",
            "efficientnet_lite_pytorch is not installed.*pip install 'fewstep.policy.'",
        ),
    ],
)
def test_absent_packages_are_named(
    spec: str, module: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=message):
        open_network(spec, 8)


# --- timm


class _TimmModel(nn.Module):
    """Two maps: the images it was given, and half of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.feature_info = types.SimpleNamespace(channels=lambda: [3, 3])

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, self.weight * images[:, :, ::2, ::2]]


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """A module in timm's place; returns what models were asked of it."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.append((name, options))
        if name == "unreachable":
            raise OSError("no route to the hub")
        return _TimmModel()

    known = {"input_size": (3, 16, 16), "mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 1.0)}
    module: Any = types.ModuleType("timm")
    module.create_model = create_model
    module.data = types.SimpleNamespace(resolve_model_data_config=lambda model: known)
    monkeypatch.setitem(sys.modules, "timm", module)
    return asked


def test_timm_networks_are_scaled_and_normalised_as_they_say(
    timm: list[tuple[str, dict[str, Any]]],
) -> None:
    network = open_network("timm:some_net.tag", 8)
    assert timm == [("some_net.tag", {"pretrained": True, "features_only": True})]
    assert (network.name, network.channels) == ("timm:some_net.tag", (3, 3))
    assert (network.width, network.input_size) == (3, 16)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    white = np.full((2, 8, 8, 3), 255, np.uint8)
    found = network.features(white, _CPU)
    assert [each.shape for each in found.maps] == [(2, 3, 16, 16), (2, 3, 8, 8)]
    torch.testing.assert_close(found.pooled, torch.tensor([[1.0, 3.0, 1.0]] * 2))


def test_timm_weights_may_come_from_a_file(timm: list[tuple[str, dict[str, Any]]]) -> None:
    network = open_network("timm:net=/some/weights.safetensors", 8)
    assert network.name == "timm:net"
    overlay = timm[0][1]["pretrained_cfg_overlay"]
    assert overlay == {"file": str(Path("/some/weights.safetensors"))}


def test_timm_without_weights_says_where_to_get_them(
    timm: list[tuple[str, dict[str, Any]]],
) -> None:
    with pytest.raises(CalibrationError, match="no route to the hub; .*timm:unreachable={file}"):
        open_network("timm:unreachable", 8)
