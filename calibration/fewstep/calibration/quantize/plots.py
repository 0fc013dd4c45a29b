"""The rankings of layers as a picture: what each costs alone, and which are spared."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.runtime.errors import OutputError, RequestError, missing
from fewstep.runtime.files import replacing
from fewstep.runtime.records import LayerCost, QuantizationInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")

_KEPT, _QUANTIZED = "tab:orange", "tab:blue"
_ROW_INCHES, _OTHER_INCHES = 0.24, 1.6
_SHOWN_NODES = 3


def require_plot(path: Path) -> None:
    """Refuse what cannot become a picture, before any work.

    Raises:
        OutputError: a suffix of another kind of file.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{path}: expected a file ending in {', '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise missing("matplotlib", "calibration")


def plot_rankings(records: Mapping[str, QuantizationInfo], path: Path) -> None:
    """Draw what every layer or block costs alone, the most expensive on top, a part a graph.

    Args:
        records: of quantized graphs, by name.
        path: of the picture.

    Raises:
        RequestError: the layers were not selected by ``auto``.
        OutputError: the place is not writable, or the disk is full.
    """
    autos = [each.auto for each in records.values() if each.auto is not None]
    if len(autos) < len(records):
        raise RequestError("there is no ranking to draw: layers were not selected by --auto")
    from matplotlib.figure import Figure

    heights = [_OTHER_INCHES + _ROW_INCHES * len(auto.ranking) for auto in autos]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    parts = figure.subplots(len(records), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (graph, record) in zip(parts, records.items(), strict=True):
        _draw(axes, graph, record)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _draw(axes: Axes, graph: str, record: QuantizationInfo) -> None:
    """The ranking of one graph."""
    assert record.auto is not None
    ranking = record.auto.ranking
    colours = [_KEPT if is_kept(cost, record) else _QUANTIZED for cost in ranking]
    axes.barh(range(len(ranking)), [cost.cost for cost in ranking], color=colours)
    axes.set_yticks(range(len(ranking)), [label(cost) for cost in ranking], fontsize=7)
    axes.invert_yaxis()
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    what, unit = "KL divergence from fp32", ", nats per token"
    if record.relative_error is not None:
        what, unit = "Relative error", ""
    if record.psnr_db is not None:
        what, unit = "Mean squared difference of images", ""
    axes.set_xlabel(f"{what} with nothing else quantized{unit}")
    kept = sum(is_kept(cost, record) for cost in ranking)
    axes.set_title(
        f"{graph}: {kept} of {len(ranking)} {record.auto.by}s kept in higher precision (orange); "
        f"all others together: {record.text}",
        fontsize=9,
    )


def label(cost: LayerCost) -> str:
    """The names of a group's nodes, the first few of a block."""
    more = len(cost.nodes) - _SHOWN_NODES
    shown = ", ".join(cost.nodes[:_SHOWN_NODES])
    return f"{shown} and {more} more" if more > 0 else shown


def is_kept(cost: LayerCost, record: QuantizationInfo) -> bool:
    """Whether ``auto`` spared these layers."""
    return all(record.kept.get(name) == "auto" for name in cost.nodes)
