"""Settings: what is refused, what is completed from the bundle, and what counts as the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fewstep.calibration.quantize.settings import Settings, from_record, tolerances
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.records import GraphInfo, QuantizationInfo


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "int9"}, "unknown precision 'int9'; expected one of: fp8, int8. Did you"),
        ({"method": "minmax"}, "unknown method 'minmax'; .* Did you mean 'min-max'"),
        ({"other_layers": "bf16"}, "unknown type of other layers 'bf16'; expected .*: fp16, fp32"),
        ({"rollouts": 0}, "--rollouts must be at least 1, got 0"),
        ({"held_out": -1}, "--held-out must be at least 1, got -1"),
        ({"seed": -1}, "--seed must be 0 … "),
        ({"seed": 2**64 - 40}, "--seed must be 0 … 18446744073709551556, so that all fit"),
        ({"percentile": 99.0}, "--percentile goes with --method percentile, not min-max"),
        ({"method": "percentile", "percentile": 0.0}, "above 0 and at most 100, got 0"),
        ({"method": "percentile", "percentile": float("nan")}, "at most 100, got nan"),
        ({"precision": "fp8", "method": "entropy"}, "nvidia-modelopt quantizes to fp8, by"),
        ({"precision": "fp8", "auto": tolerances("layer")}, "without --auto; select layers"),
        ({"fp32_heads": False}, "go with --other-layers fp16"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Settings(**options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("step",), "unknown unit for --by 'step'; expected one of: block, layer"),
        (("layer", 0.0), "--max-kl must be a number of nats above 0, got 0"),
        (("layer", float("nan")), "--max-kl must be .* got nan"),
        (("block", 0.1, 1.1), "--min-token-agreement must be a fraction, 0 … 1, got 1.1"),
        (("layer", None, None, -0.1), "--max-error must be a number above 0, got -0.1"),
        (("layer", None, None, float("inf")), "--max-error must be a number above 0, got inf"),
    ],
)
def test_tolerances_that_mean_nothing_are_refused(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        tolerances(*arguments)


def test_what_is_left_open_comes_from_the_bundle(tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    defaults = bundle.manifest.model.defaults
    complete = Settings(method="percentile", other_layers="fp16").for_bundle(bundle)
    assert complete.generation == defaults.model_dump(mode="json", exclude={"preset"})
    assert (complete.percentile, complete.fp32_heads) == (99.99, True)
    plain = Settings().for_bundle(bundle)
    assert (plain.percentile, plain.fp32_heads, plain.other_layers) == (None, None, "fp32")
    newest = Settings(generation={"schedule": "policy"}).for_bundle(bundle)
    assert newest.generation["schedule"] == "policy-exported"
    assert newest.for_bundle(bundle) == newest
    for generation, said in (
        ({"steps": 17}, "steps must be 1 … 16"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'"),
        ({"heat": 1}, "unknown setting 'heat'"),
        ({"schedule": "policy", "guidance": 2}, "the policy decides guidance"),
    ):
        with pytest.raises(RequestError, match=said):
            Settings(generation=generation).for_bundle(bundle)


def _made(settings: Settings, kept: dict[str, Any]) -> GraphInfo:
    assert settings.other_layers
    record = QuantizationInfo(
        tool="onnxruntime 1",
        method=settings.method,
        percentile=settings.percentile,
        rollouts=settings.rollouts,
        held_out=settings.held_out,
        seed=settings.seed,
        settings=dict(settings.generation),
        data_sha256="0" * 64,
        other_layers=settings.other_layers,
        kept=kept,
        auto=settings.auto,
        kl_nats=0.1,
        token_agreement=0.9,
    )
    heads = settings.fp32_heads
    return GraphInfo(file="x", fp32_heads=heads, quantization=record, inputs={}, outputs={})


@pytest.mark.parametrize(
    "other",
    [
        {"rollouts": 41},
        {"held_out": 1},
        {"seed": 1},
        {"generation": {"steps": 3}},
        {"generation": {"schedule": "linear"}},
        {"generation": {"guidance": 2}},
        {"method": "entropy"},
        {"method": "percentile"},
        {"keep": frozenset("b")},
        {"keep": frozenset("ab")},
        {"auto": tolerances("layer", 0.5)},
        {"other_layers": "fp16"},
        {"other_layers": "fp16", "fp32_heads": False},
    ],
)
def test_any_other_setting_is_another_graph(tiny_bundle: Path, other: dict[str, Any]) -> None:
    bundle = Bundle.read(tiny_bundle)
    settings = Settings(keep=frozenset("a")).for_bundle(bundle)
    info = _made(settings, {"a": "user", "head": "rules"})
    assert settings.same_as(info, bundle)
    # A matmul that the rules keep anyway makes no difference.
    assert Settings(keep=frozenset(("a", "head"))).for_bundle(bundle).same_as(info, bundle)
    changed = Settings(**({"keep": frozenset("a")} | other)).for_bundle(bundle)
    assert not changed.same_as(info, bundle)
    assert changed.same_as(_made(changed, dict.fromkeys(changed.keep, "user")), bundle)


def test_a_record_gives_its_settings_back(tiny_bundle: Path) -> None:
    auto = tolerances("block", 0.5)
    bundle = Bundle.read(tiny_bundle)
    settings = Settings(auto=auto, seed=3).for_bundle(bundle)
    info = _made(settings, {"a": "auto", "head": "rules"})
    again = from_record(info, "int8")
    assert (again.decided, again.auto, again.seed) == ({"a": "auto", "head": "rules"}, auto, 3)
    assert again.same_as(info, bundle) and settings.same_as(info, bundle)


def test_a_record_of_an_earlier_fewstep_is_read(tiny_bundle: Path) -> None:
    """It named two settings of the rollouts; the others were the bundle's defaults."""
    bundle = Bundle.read(tiny_bundle)
    settings = Settings(generation={"steps": 3}).for_bundle(bundle)
    fields = _made(settings, {"head": "rules"}).model_dump()
    record = fields["quantization"]
    del record["settings"]
    record |= {"steps": 3, "schedule": "cosine"}
    del record["relative_error"]  # every graph was judged by logits
    cost = {"nodes": ["a"], "kl_nats": 0.1, "token_agreement": 0.9}
    auto = {"by": "layer", "max_kl": 0.1, "min_token_agreement": 0.9, "ranking": [cost]}
    before = GraphInfo.model_validate(fields | {"quantization": record | {"auto": auto}})
    assert before.quantization is not None and before.quantization.auto is not None
    assert before.quantization.auto.ranking[0].cost == 0.1
    info = GraphInfo.model_validate(fields)
    assert info.quantization is not None
    assert info.quantization.settings == {"steps": 3, "schedule": "cosine"}
    assert settings.same_as(info, bundle)
    assert not Settings().for_bundle(bundle).same_as(info, bundle)
