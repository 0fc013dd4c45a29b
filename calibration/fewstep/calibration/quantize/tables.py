"""What quantization did, as rich tables for the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from fewstep.calibration.quantize.flow import Outcome
from fewstep.calibration.quantize.plots import is_kept
from fewstep.cli.tables import settings_text
from fewstep.runtime.records import QuantizationInfo

_WHO = {"rules": "default rules", "user": "--keep", "auto": "--auto"}


def quantize_tables(outcome: Outcome) -> list[Table]:
    """The ranking if there is one, then what is kept and what it all costs."""
    record = outcome.record
    ranked = [_ranking(record)] if record.auto is not None else []
    return [*ranked, _summary(outcome)]


def _ranking(record: QuantizationInfo) -> Table:
    assert record.auto is not None
    title = f"Each {record.auto.by} alone in low precision, on held-out rollouts"
    table = Table(title=title, title_justify="left")
    for heading in ("", "Matmuls", "KL, nats", "Token agreement", ""):
        table.add_column(heading, overflow="fold")
    for place, cost in enumerate(record.auto.ranking, 1):
        metrics = (f"{cost.kl_nats:.2e}", f"{cost.token_agreement:.4f}")
        state = "[yellow]kept[/]" if is_kept(cost, record) else "quantized"
        table.add_row(str(place), escape("\n".join(cost.nodes)), *metrics, state)
    return table


def _summary(outcome: Outcome) -> Table:
    record = outcome.record
    title = f"{outcome.graph} in {outcome.precision}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    quantized = outcome.matmuls - len(record.kept)
    first, held_out = record.seed, record.seed + record.rollouts
    rows = {
        "quantized": f"{quantized} of {outcome.matmuls} matmuls with weights, by {record.tool}",
        "kept": "\n".join(f"{name} ({_WHO[who]})" for name, who in record.kept.items()) or "none",
        "other layers": record.other_layers,
        "ranges": f"{record.method}{f' {record.percentile:g}' if record.percentile else ''} of "
        f"{record.rollouts} rollouts, seeds {first} … {held_out - 1}",
        "settings": settings_text(record.settings),
        "held out": f"{record.held_out} rollouts, seeds {held_out} … "
        f"{held_out + record.held_out - 1}",
        "KL from fp32": f"{record.kl_nats:.2e} nats per token",
        "token agreement": f"{record.token_agreement:.4f}",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table
