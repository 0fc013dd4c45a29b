"""The ranking of layers as a picture: what each costs alone, and which are spared."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fewstep.runtime.errors import OutputError, RequestError, missing
from fewstep.runtime.files import replacing
from fewstep.runtime.records import LayerCost, QuantizationInfo

SUFFIXES = (".png", ".svg", ".pdf")

_KEPT, _QUANTIZED = "tab:orange", "tab:blue"
_ROW_INCHES = 0.24
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


def plot_ranking(record: QuantizationInfo, path: Path) -> None:
    """Draw the KL divergence of every layer or block alone, the most expensive on top.

    Raises:
        RequestError: the layers were not selected by ``auto``.
        OutputError: the place is not writable, or the disk is full.
    """
    if record.auto is None:
        raise RequestError("there is no ranking to draw: layers were not selected by --auto")
    from matplotlib.figure import Figure

    ranking = record.auto.ranking
    figure = Figure(figsize=(9, 1.6 + _ROW_INCHES * len(ranking)), layout="constrained")
    axes = figure.subplots()
    colours = [_KEPT if is_kept(cost, record) else _QUANTIZED for cost in ranking]
    axes.barh(range(len(ranking)), [cost.kl_nats for cost in ranking], color=colours)
    axes.set_yticks(range(len(ranking)), [label(cost) for cost in ranking], fontsize=7)
    axes.invert_yaxis()
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    axes.set_xlabel("KL divergence from fp32 with nothing else quantized, nats per token")
    kept = sum(is_kept(cost, record) for cost in ranking)
    axes.set_title(
        f"{kept} of {len(ranking)} {record.auto.by}s kept in higher precision (orange); all others "
        f"together: KL {record.kl_nats:.3g}, token agreement {record.token_agreement:.3f}",
        fontsize=9,
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def label(cost: LayerCost) -> str:
    """The names of a group's nodes, the first few of a block."""
    more = len(cost.nodes) - _SHOWN_NODES
    shown = ", ".join(cost.nodes[:_SHOWN_NODES])
    return f"{shown} and {more} more" if more > 0 else shown


def is_kept(cost: LayerCost, record: QuantizationInfo) -> bool:
    """Whether ``auto`` spared these layers."""
    return all(record.kept.get(name) == "auto" for name in cost.nodes)
