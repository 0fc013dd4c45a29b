"""Plots of the ranking of layers: what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.calibration.quantize.flow import QuantizeRequest, quantize
from fewstep.calibration.quantize.settings import Settings, tolerances
from fewstep.runtime.errors import OutputError, RequestError

_AUTO = Settings(rollouts=5, held_out=4, generation={"steps": 3}, auto=tolerances("layer", 1.0))


def test_plots_are_refused_early(bundle_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"expected a file ending in \.png"):
        quantize(QuantizeRequest(bundle_copy, _AUTO, plot=tmp_path / "ranking.doc"))
    with pytest.raises(RequestError, match="--plot shows the ranking of --auto"):
        quantize(QuantizeRequest(bundle_copy, Settings(), plot=tmp_path / "ranking.png"))
    assert list(tmp_path.glob("ranking*")) == []


def test_absent_matplotlib_names_the_extra(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = "fewstep.calibration.quantize.plots.importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'fewstep\[calibration\]'"):
        quantize(QuantizeRequest(bundle_copy, _AUTO, plot=Path("ranking.png")))
