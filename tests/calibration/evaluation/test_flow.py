"""From images to a report: by EfficientNet without weights, by Inception with random ones."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.calibration.evaluation.conftest import averages, blobs, write_pictures

from fewstep.calibration.evaluation import flow, networks
from fewstep.calibration.evaluation.flow import evaluate
from fewstep.calibration.policy.features import EfficientNetLite0
from fewstep.runtime.errors import (
    CalibrationError,
    DeviceError,
    MissingDependencyError,
    OutputError,
)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "real", blobs(12, seed=0), classes=2)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    averages(monkeypatch)


def _frechet(a: np.ndarray, b: np.ndarray) -> float:
    """By singular values of the centred features: those of the product's square root."""
    wide = [np.asarray(each, np.float64) for each in (a, b)]
    centred = [(each - each.mean(0)) / np.sqrt(len(each) - 1) for each in wide]
    roots = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    shift = wide[0].mean(0) - wide[1].mean(0)
    return float(shift @ shift + sum((each**2).sum() for each in centred) - 2 * roots)


def test_efficientnet_distances_are_those_of_numpy_and_rise_with_noise(
    tmp_path: Path, real: Path
) -> None:
    network = EfficientNetLite0(16)
    order = [*range(0, 12, 2), *range(1, 12, 2)]  # by class folder
    features = network.pooled(blobs(12, seed=0)[order], torch.device("cpu"))
    distances = []
    for noise in (0.0, 40.0):
        pictures = blobs(12, seed=0, noise=noise)[::-1].copy()
        np.savez(tmp_path / "made.npz", pictures)
        found = evaluate(tmp_path / "made.npz", real, batch=5)
        distances.append(found.metrics["efficientnet_frechet_distance"])
        expected = _frechet(network.pooled(pictures, torch.device("cpu")), features)
        assert distances[-1] == pytest.approx(expected, rel=1e-3, abs=0.1)
    assert abs(distances[0]) < 0.1 < 10 < distances[1]
    assert found.features == "EfficientNet-Lite0 at 64×64"


@pytest.mark.usefixtures("quick")
def test_equal_images_are_at_distance_zero_with_full_precision_and_recall(real: Path) -> None:
    found = evaluate(real, real, batch=5)
    assert found.metrics["efficientnet_frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert found.metrics["efficientnet_precision"] == found.metrics["efficientnet_recall"] == 1
    assert (found.count, found.reference_count, found.size) == (12, 12, (16, 16))


@pytest.mark.usefixtures("quick")
def test_efficientnet_is_never_called_fid_and_says_so(real: Path) -> None:
    found = evaluate(real, real)
    assert not any(name in ("fid", "kid", "inception_score") for name in found.metrics)
    assert not any(word in title for title in found.titles.values() for word in ("FID", "KID"))
    assert "never with published FID" in found.warnings[0]


@pytest.mark.usefixtures("quick")
def test_too_few_images_are_said_with_the_number(real: Path) -> None:
    warning = evaluate(real, real).warnings[1]
    assert warning.startswith(f"{real} has 12 images") and "needs more than 12" in warning


@pytest.mark.usefixtures("quick")
def test_saved_statistics_stand_for_the_images(tmp_path: Path, real: Path) -> None:
    np.savez(tmp_path / "others.npz", blobs(10, seed=7))
    saved = evaluate(real, None, save=tmp_path / "new" / "real.npz")
    assert saved.metrics == {} and saved.saved == str(tmp_path / "new" / "real.npz")
    by_images = evaluate(tmp_path / "others.npz", real)
    by_statistics = evaluate(tmp_path / "others.npz", tmp_path / "new" / "real.npz")
    distance = by_images.metrics["efficientnet_frechet_distance"]
    assert by_statistics.metrics == {"efficientnet_frechet_distance": pytest.approx(distance)}
    assert by_statistics.reference_count == 12
    assert any("statistics have none" in each for each in by_statistics.warnings)


@pytest.mark.usefixtures("quick")
def test_an_archive_with_statistics_and_images_gives_both(tmp_path: Path, real: Path) -> None:
    """As ADM's references: the distance to the statistics, precision and recall by the images."""
    evaluate(real, None, save=tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as archive:
        np.savez(tmp_path / "ref.npz", blobs(8, seed=0), mu=archive["mu"], sigma=archive["sigma"])
    found = evaluate(real, tmp_path / "ref.npz")
    assert found.metrics["efficientnet_frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert {"efficientnet_precision", "efficientnet_recall"} <= found.metrics.keys()
    assert any("do not say which network" in each for each in found.warnings)


@pytest.mark.usefixtures("quick")
def test_other_features_are_refused(tmp_path: Path, real: Path) -> None:
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(CalibrationError, match=r"2,048 features.*has 12;.*--weights"):
        evaluate(real, tmp_path / "fid.npz")
    named = np.array("EfficientNet-Lite0 at 128×128")
    np.savez(tmp_path / "large.npz", mu=np.zeros(12), sigma=np.eye(12), network=named)
    with pytest.raises(CalibrationError, match="Lite0 at 128×128, not of EfficientNet of averages"):
        evaluate(real, tmp_path / "large.npz")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "holds no statistics"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, r"sigma \[d, d\], got"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "must be finite"),
        ({"mean": np.zeros(3)}, "neither statistics .* nor images .*: it has mean"),
    ],
)
def test_archives_that_are_no_reference_are_refused(
    tmp_path: Path, real: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match=message):
        evaluate(real, tmp_path / "bad.npz")


def test_places_are_tried_before_any_work(
    tmp_path: Path, real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "open_network", lambda *_: pytest.fail("work began"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        evaluate(real, None, save=tmp_path / "file" / "s.npz")
    with pytest.raises(OutputError, match=r"written as \.npz"):
        evaluate(real, None, save=tmp_path / "s.json")
    with pytest.raises(CalibrationError, match="nothing to compare with"):
        evaluate(real, None)
    with pytest.raises(CalibrationError, match="absent is not there"):
        evaluate(real, tmp_path / "absent")


def test_a_device_that_is_not_there_is_refused(real: Path) -> None:
    for device in ("cuda:99", "abacus"):
        with pytest.raises(DeviceError, match=f"cannot use the device '{device}'"):
            evaluate(real, real, device=device)


@pytest.mark.usefixtures("quick")
def test_one_image_is_too_few(tmp_path: Path, real: Path) -> None:
    np.savez(tmp_path / "one.npz", blobs(1, seed=0))
    with pytest.raises(CalibrationError, match="at least 2"):
        evaluate(tmp_path / "one.npz", real)


# --- Inception


@pytest.mark.slow
def test_inception_on_a_file_of_weights_from_end_to_end(
    tmp_path: Path, real: Path, inception_file: Path
) -> None:
    pictures, saved = blobs(6, seed=0, noise=60), tmp_path / "inception.npz"
    np.savez(tmp_path / "noisy.npz", pictures)
    found = evaluate(tmp_path / "noisy.npz", real, weights=inception_file, save=saved)
    network = networks.Inception(inception_file, torch.device("cpu"))
    (noisy, logits), (clean, _) = network(pictures), network(blobs(12, seed=0))
    assert found.metrics["fid"] == pytest.approx(_frechet(noisy, clean), rel=1e-3)
    assert found.metrics["inception_score"] == pytest.approx(_score(logits), rel=1e-6)
    assert {"kid", "precision", "recall"} <= found.metrics.keys()
    assert list(found.titles.values())[:2] == ["FID", "Inception Score"]
    assert found.features == "Inception-v3 (2015-12-05)"
    assert not any("EfficientNet" in each for each in found.warnings)
    np.testing.assert_allclose(np.load(saved)["mu"], noisy.astype(np.float64).mean(0), rtol=1e-6)


def _score(logits: np.ndarray) -> float:
    """Inception Score of a single split: exp of the mean KL from the images' mean."""
    weights = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    p = weights / weights.sum(1, keepdims=True)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))


def test_weights_of_something_else_are_refused_in_a_line(
    tmp_path: Path, real: Path, inception_file: Path
) -> None:
    state = torch.load(inception_file, weights_only=True)
    torch.save({key: each for key, each in state.items() if "Mixed" not in key}, tmp_path / "a.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "b.pth")
    (tmp_path / "c.pth").write_text("<html>")
    for name, message in (
        ("a.pth", "is not Inception as FID uses it"),
        ("b.pth", "holds no weights"),
        ("c.pth", "holds no weights"),
        ("absent.pth", "no such file"),
    ):
        with pytest.raises(CalibrationError, match=message) as refused:
            evaluate(real, real, weights=tmp_path / name)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000


def test_without_torch_fidelity_the_command_that_leaves_pytorch_alone_is_named(
    real: Path, inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "torch_fidelity" else find(name)
    )
    with pytest.raises(MissingDependencyError, match="pip install --no-deps torch-fidelity$"):
        evaluate(real, real, weights=inception_file)


def test_inception_needs_no_torchvision(inception_file: Path, tmp_path: Path) -> None:
    """In a process of its own, where torchvision fails as PyPI's does beside a CPU build; the
    package is not left behind in part."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('no operator torchvision::nms')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from fewstep.calibration.evaluation.networks import inception_class\n"
        "inception_class()('any', ['2048'], sys.argv[1])\n"
        "print([name for name in sys.modules if name.startswith('torch_fidelity')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, inception_file], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_a_package_that_is_imported_already_stays(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("torch_fidelity")
    assert spec is not None
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    networks.inception_class()
    assert sys.modules["torch_fidelity"] is package
    for name in [each for each in sys.modules if each.startswith("torch_fidelity.")]:
        del sys.modules[name]


def test_another_inception_is_told_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch_fidelity").mkdir()
    (tmp_path / "torch_fidelity" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match="another Inception .*--no-deps --upgrade"):
        networks.inception_class()


@pytest.mark.parametrize(
    ("name", "message"), [("nope.pth", "no such file: .*nope.pth"), ("real", "real is a folder")]
)
def test_weights_that_are_not_there_are_said_before_anything_else(
    tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch, real: Path
) -> None:
    monkeypatch.setattr(flow, "open_images", lambda *_: pytest.fail("work began"))
    monkeypatch.setattr(networks, "inception_class", lambda: pytest.fail("work began"))
    with pytest.raises(CalibrationError, match=f"{message}; --weights expects weights-inception"):
        evaluate(real, real, weights=tmp_path / name)


# --- few images


@pytest.mark.usefixtures("quick")
def test_few_images_are_said_of_every_metric_between_images(tmp_path: Path) -> None:
    for count in (3, 20, 120, 1000):
        np.savez(tmp_path / f"{count}.npz", blobs(count, seed=count))
    said = evaluate(tmp_path / "120.npz", tmp_path / "20.npz").warnings
    few, subsets = said[-2:]
    assert few.startswith("precision, recall and EfficientNet kernel distance say little with 20 ")
    assert "1,000 or more on both sides" in few
    assert subsets.startswith("subsets of EfficientNet kernel distance are 20 images, all that ")
    assert f"{tmp_path / '20.npz'} has" in subsets
    said = evaluate(tmp_path / "120.npz", tmp_path / "3.npz").warnings
    assert any("need more than 3 images" in each for each in said)
    assert any(each.startswith("EfficientNet kernel distance say") for each in said)
    said = evaluate(tmp_path / "1000.npz", tmp_path / "1000.npz").warnings
    assert not any("precision" in each or "subsets" in each for each in said)
