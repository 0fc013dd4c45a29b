"""What quantization is asked for, checked before anything runs, and read back from a bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.examples import complete_settings
from fewstep.runtime.families import model_of, quantized_graphs
from fewstep.runtime.records import (
    AutoChoice,
    GraphInfo,
    Keeper,
    OtherLayers,
    QuantizationInfo,
    RangeMethod,
)

QuantizedPrecision = Literal["int8", "fp8"]

PERCENTILE = 99.99
"""The default of the method of that name."""

MAX_KL, MIN_TOKEN_AGREEMENT = 1e-3, 0.95
"""The default tolerances of ``auto`` on logits: about twice what int8 costs the sample in all."""

MAX_ERROR = 0.05
"""The default tolerance of ``auto`` on what graphs without logits give, by the same measure."""

MIN_PSNR = 37.0
"""The default tolerance of ``auto`` on images, in dB: about twice what int8 costs the samples."""

_LAST_SEED = 2**64 - 1


@dataclass(frozen=True)
class Settings:
    """How graphs are to be quantized, or one of them.

    ``rollouts`` and ``held_out``: how many ranges and quality are measured on; their seeds count
    up from ``seed``. ``generation``: settings of their requests, the bundle's where not given.
    ``keep``: matmuls that stay in higher precision beside those of the default rules. ``auto``:
    the tolerances by which more are selected, without a ranking. ``other_layers``: the type of all
    other arithmetic, fp32 if ``None``; in fp16, ``fp32_heads`` says whether the last matmuls stay
    in fp32, which they do if ``None``. ``decided``: everything that stays in higher precision of
    one graph, as it was decided before; then ``keep`` is not looked at, and ``auto`` is the record
    of that selection.

    Raises:
        RequestError: a value that does not fit the others, or is out of range.
    """

    precision: QuantizedPrecision = "int8"
    rollouts: int = 40
    held_out: int = 20
    seed: int = 0
    generation: Mapping[str, Any] = field(default_factory=dict)
    method: RangeMethod = "min-max"
    percentile: float | None = None
    keep: frozenset[str] = frozenset()
    auto: AutoChoice | None = None
    other_layers: OtherLayers | None = None
    fp32_heads: bool | None = None
    decided: Mapping[str, Keeper] | None = None

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        if self.precision == "fp8" and (self.method != "min-max" or self.auto is not None):
            raise RequestError(
                "nvidia-modelopt quantizes to fp8, by --method min-max and without --auto; "
                "select layers with --keep, or by --auto in int8"
            )
        if self.other_layers != "fp16" and self.fp32_heads is not None:
            raise RequestError("--fp32-heads and --no-fp32-heads go with --other-layers fp16")

    def _check_names(self) -> None:
        for what, value, choices in (
            ("precision", self.precision, get_args(QuantizedPrecision)),
            ("method", self.method, get_args(RangeMethod)),
            ("type of other layers", self.other_layers, get_args(OtherLayers)),
        ):
            if value is not None and value not in choices:
                raise RequestError(choose(what, value, choices))

    def _check_numbers(self) -> None:
        for what, count in (("--rollouts", self.rollouts), ("--held-out", self.held_out)):
            if count < 1:
                raise RequestError(f"{what} must be at least 1, got {count}")
        last = _LAST_SEED - self.rollouts - self.held_out + 1
        if not 0 <= self.seed <= last:
            raise RequestError(f"--seed must be 0 … {last}, so that all fit, got {self.seed}")
        if self.percentile is None:
            return
        if self.method != "percentile":
            raise RequestError(f"--percentile goes with --method percentile, not {self.method}")
        if not 0 < self.percentile <= 100:
            raise RequestError(
                f"--percentile must be above 0 and at most 100, got {self.percentile}"
            )

    def for_bundle(self, bundle: Bundle) -> Settings:
        """The settings with nothing left open.

        Raises:
            RequestError: settings of the rollouts that the bundle cannot serve.
        """
        percentile, heads = self.percentile, self.fp32_heads
        if self.method == "percentile" and percentile is None:
            percentile = PERCENTILE
        if self.other_layers == "fp16" and heads is None:
            heads = True
        return replace(
            self,
            generation=complete_settings(model_of(bundle), self.generation),
            percentile=percentile,
            other_layers=self.other_layers or "fp32",
            fp32_heads=heads,
        )

    def same_as(self, info: GraphInfo, bundle: Bundle) -> bool:
        """Whether a graph was made with these settings, which leave nothing open."""
        if info.quantization is None:
            return False
        recorded = from_record(info, self.precision).for_bundle(bundle)
        if self.decided is not None:
            return self == recorded
        record = info.quantization
        rules = {name for name, keeper in record.kept.items() if keeper == "rules"}
        user = frozenset(name for name, keeper in record.kept.items() if keeper == "user")
        auto = record.auto.model_copy(update={"ranking": ()}) if record.auto else None
        mine = replace(self, keep=self.keep - rules)
        return mine == replace(recorded, decided=None, keep=user, auto=auto)


def tolerances(
    by: str,
    max_kl: float | None = None,
    min_token_agreement: float | None = None,
    max_error: float | None = None,
    min_psnr: float | None = None,
) -> AutoChoice:
    """The tolerances of ``auto``; ``None`` leaves one to the default.

    Raises:
        RequestError: an unknown unit, or tolerances that no graph or every graph keeps.
    """
    if by not in ("layer", "block"):
        raise RequestError(choose("unit for --by", by, ("layer", "block")))
    for what, unit, limit in (
        ("--max-kl", " of nats", max_kl),
        ("--max-error", "", max_error),
        ("--min-psnr", " of dB", min_psnr),
    ):
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise RequestError(f"{what} must be a number{unit} above 0, got {limit:g}")
    if min_token_agreement is not None and not 0 <= min_token_agreement <= 1:
        raise RequestError(
            f"--min-token-agreement must be a fraction, 0 … 1, got {min_token_agreement:g}"
        )
    return AutoChoice(
        by="layer" if by == "layer" else "block",
        max_kl=max_kl,
        min_token_agreement=min_token_agreement,
        max_error=max_error,
        min_psnr=min_psnr,
    )


def recorded(bundle: Bundle, precision: str) -> dict[str, GraphInfo]:
    """The bundle's quantized graphs, by name, and how they were made."""
    if precision not in bundle.precisions:
        return {}
    infos = {name: bundle.graph(name, precision) for name in quantized_graphs(bundle)}
    return {name: each for name, each in infos.items() if each.quantization is not None}


def from_record(info: GraphInfo, precision: QuantizedPrecision) -> Settings:
    """The settings that make a graph again, with the same matmuls in higher precision."""
    record = info.quantization
    assert record is not None
    return Settings(
        precision=precision,
        rollouts=record.rollouts,
        held_out=record.held_out,
        seed=record.seed,
        generation=record.settings,
        method=record.method,
        percentile=record.percentile,
        auto=record.auto,
        other_layers=record.other_layers,
        fp32_heads=info.fp32_heads,
        decided=dict(record.kept),
    )


def selected_by_hand(record: QuantizationInfo) -> dict[str, Keeper]:
    """What stays in higher precision for another reason than the default rules."""
    return {name: keeper for name, keeper in record.kept.items() if keeper != "rules"}
