"""What quantization did, as rich tables for the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from fewstep.calibration.quantize.outcome import Outcome, QuantizedGraph
from fewstep.calibration.quantize.plots import is_kept
from fewstep.cli.tables import settings_text
from fewstep.runtime.records import Metrics, QuantizationInfo

_WHO = {"rules": "default rules", "user": "--keep", "auto": "--auto"}


def quantize_tables(outcome: Outcome) -> list[Table]:
    """Of every graph the ranking if there is one, then what is kept and what it all costs."""
    found = []
    for graph in outcome.graphs:
        if graph.record.auto is not None:
            found.append(_ranking(graph))
        found.append(_summary(graph, outcome.precision))
    return found


def quality(outcome: Outcome) -> str:
    """How near the graphs come to those in fp32, in a line."""
    named = len(outcome.graphs) > 1
    found = ((each.name, each.record) for each in outcome.graphs)
    return "; ".join(f"{n}: {_quality(each)}" if named else _quality(each) for n, each in found)


def _quality(metrics: Metrics) -> str:
    if metrics.psnr_db is not None:
        return f"images at {metrics.psnr_db:.1f} dB from fp32"
    if metrics.relative_error is not None:
        return f"relative error {metrics.relative_error:.2g}"
    text = (
        f"{metrics.kl_nats:.2g} nats from fp32 per token, token agreement "
        f"{metrics.token_agreement:.3f}"
    )
    return text if metrics.cosine is None else f"{text}, cosine of text states {metrics.cosine:.4f}"


def _ranking(graph: QuantizedGraph) -> Table:
    record = graph.record
    assert record.auto is not None
    title = f"{graph.name}: each {record.auto.by} alone in low precision, on held-out rollouts"
    table = Table(title=title, title_justify="left")
    named = [_metrics(cost) for cost in record.auto.ranking]
    headings = next(iter(named), {})
    for heading in ("", "Matmuls", *headings, ""):
        table.add_column(heading, overflow="fold")
    for place, (cost, metrics) in enumerate(zip(record.auto.ranking, named, strict=True), 1):
        state = "[yellow]kept[/]" if is_kept(cost, record) else "quantized"
        table.add_row(str(place), escape("\n".join(cost.nodes)), *metrics.values(), state)
    return table


def _metrics(metrics: Metrics) -> dict[str, str]:
    """Of a ranking, by heading."""
    if metrics.psnr_db is not None:
        return {"PSNR, dB": f"{metrics.psnr_db:.1f}"}
    if metrics.relative_error is not None:
        return {"Relative error": f"{metrics.relative_error:.2e}"}
    return {
        "KL, nats": f"{metrics.kl_nats:.2e}",
        "Token agreement": f"{metrics.token_agreement:.4f}",
        **_cosine("Cosine", metrics),
    }


def _cosine(heading: str, metrics: Metrics) -> dict[str, str]:
    """Of the states of texts, where there are any."""
    return {} if metrics.cosine is None else {heading: f"{metrics.cosine:.6f}"}


def _summary(graph: QuantizedGraph, precision: str) -> Table:
    record = graph.record
    title = f"{graph.name} in {precision}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    quantized = graph.matmuls - len(record.kept)
    held_out = record.seed + record.rollouts
    rows = {
        "quantized": _quantized(record, quantized, graph.matmuls),
        "size": f"{graph.bytes / 1e6:.1f} MB, {graph.fp32_bytes / 1e6:.1f} MB in fp32",
        "kept": "\n".join(f"{name} ({_WHO[who]})" for name, who in record.kept.items()) or "none",
        "other layers": record.other_layers,
        **({} if record.weights_only else _ranges(record)),
        "settings": settings_text(record.settings),
        "held out": f"{record.held_out} rollouts, seeds {held_out} … "
        f"{held_out + record.held_out - 1}",
        **_costs(record),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _quantized(record: QuantizationInfo, count: int, every: int) -> str:
    what = "weights of matmuls and tables" if record.weights_only else "matmuls with weights"
    if record.psnr_db is not None:
        what = "matmuls and convolutions with weights"
    return f"{count} of {every} {what}, by {record.tool}"


def _ranges(record: QuantizationInfo) -> dict[str, str]:
    percentile = f" {record.percentile:g}" if record.percentile else ""
    last = record.seed + record.rollouts - 1
    rollouts = f"{record.rollouts} rollouts, seeds {record.seed} … {last}"
    return {"ranges": f"{record.method}{percentile} of {rollouts}"}


def _costs(record: QuantizationInfo) -> dict[str, str]:
    if record.psnr_db is not None:
        return {"images": f"PSNR {record.psnr_db:.1f} dB from fp32"}
    if record.relative_error is not None:
        return {"relative error": f"{record.relative_error:.2e} of what fp32 gives"}
    return {
        "KL from fp32": f"{record.kl_nats:.2e} nats per token",
        "token agreement": f"{record.token_agreement:.4f}",
        **_cosine("cosine of text states", record),
    }
