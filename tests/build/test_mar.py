"""MAR's graphs in fp16, what they compute, and the shapes that engines of them have to take.

Covered: fp16 graphs and where they diverge; preflight; operations by hand, and repeated ones as
often as they run; profiles that span whatever is asked for; engines of TensorRT-RTX.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.build.estimate import Estimate, estimate
from fewstep.build.graph_work import graph_work
from fewstep.build.graphs import load_graph
from fewstep.build.layers import first_divergence
from fewstep.build.pipeline import BuildRequest, build, preflight_only
from fewstep.build.precision import lower
from fewstep.build.profiles import Profile, profiles, wrong_profiles
from fewstep.build.roofline import Stage
from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families import Model, family_of, model_of
from fewstep.runtime.families.mar.diffusion import timesteps
from fewstep.runtime.generator import Generator
from fewstep.runtime.manifest import Manifest
from fewstep.runtime.program import Repeat
from fewstep.runtime.records import BuildOptions
from fewstep.runtime.settings import settings_of
from fewstep.runtime.verify import verify

_GRAPHS = ("encoder", "decoder_start", "decoder_rest", "readout", "head", "decoder") + (
    "image_encoder",
)
_ENCODER, _DEPTH, _DECODER, _HEAD, _CHANNELS, _BUFFER = 48, 2, 32, 24, 12, 6
_CACHED: dict[str, Any] = {"refresh": 2, "refresh_first": 1, "recompute": 0.1}


# --- fp16


@pytest.fixture(scope="module")
def fp16(mar_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = shutil.copytree(mar_bundle, tmp_path_factory.mktemp("fp16") / "bundle")
    made, reports = add_variant(Bundle.read(path), "fp16")
    assert {each.graph for each in reports} == {*_GRAPHS}
    assert all(each.largest > 0 for each in reports)
    # From the last timestep 1 / √ᾱ is 2·10⁴, so that tokens of a random head are large.
    assert {each.graph for each in reports if each.out_of_range} <= {"encoder", "head", "decoder"}
    return made


def test_the_variant_passes_and_makes_images(fp16: Bundle) -> None:
    with Generator.open(fp16.path, precision="fp16", threads=1) as generator:
        report = verify(generator)
        assert report.passed
        errors = {each.metric: each.value for each in report.checks}
        assert 1e-5 < errors["latent_error"] < 5e-3
        assert 1e-6 < errors["noise_error"] < 1e-2
        made = generator.generate(class_ids=[1, 2], **_CACHED, reuse_guidance=True)
        assert len(made.images) == 2
        assert len(generator.generate(class_ids=[1], preset="fast").images) == 1


def test_graphs_in_fp16_open_where_every_range_allows_it(mar_bundle: Path, tmp_path: Path) -> None:
    """Here some nodes stay in fp32, which is of no help to other models. In a process of its own,
    as ONNX Runtime may crash."""
    bundle, opened = Bundle.read(mar_bundle), "import sys, onnxruntime as o\n"
    for name in _GRAPHS:
        onnx.save(lower(load_graph(bundle, name), "fp16").model, tmp_path / f"{name}.onnx")
        opened += f"o.InferenceSession('{tmp_path}/{name}.onnx'); print('{name}')\n"
    done = subprocess.run(
        [sys.executable, "-c", opened], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [*_GRAPHS], done.stderr


@pytest.mark.parametrize("graph", ["encoder", "decoder_rest", "head"])
def test_layers_are_compared_in_every_iteration(fp16: Bundle, graph: str) -> None:
    found = first_divergence(fp16, graph, "fp16", tolerance=0.0)
    assert found.first is not None and found.worst is not None and found.worst.error is not None
    assert 0 < found.worst.error < 2e-2
    assert found.step in range(8)


def test_preflight_finds_nothing(fp16: Bundle) -> None:
    found = preflight_only(BuildRequest(fp16.path, "tensorrt-rtx", "fp16", ("8.6",), kernels=False))
    assert found.as_dict()["problems"] == []


# --- operations


@pytest.mark.parametrize(("rows", "length", "past"), [(2, 0, 0), (1, 4, 0), (4, 1, 11)])
def test_operations_of_the_encoder(mar_bundle: Path, rows: int, length: int, past: int) -> None:
    """By hand: the tokens embedded; qkv, projection, two layers of the FFN; attention of the buffer
    and the tokens to these and what is cached; the layer to the decoder's width."""
    positions = _BUFFER + length
    weights = 12 * _ENCODER**2
    attention = 2 * _ENCODER * (past + positions)
    flops = 2 * rows * length * _CHANNELS * _ENCODER
    flops += 2 * _DEPTH * rows * positions * (weights + attention)
    flops += 2 * rows * positions * _ENCODER * _DECODER
    sizes = {"batch": rows, "length": length, "past": past}
    assert graph_work(Bundle.read(mar_bundle), "encoder", [sizes]).flops_at(sizes) == flops


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (2, 5)])
def test_operations_of_the_head(mar_bundle: Path, rows: int, count: int) -> None:
    """By hand: in, two blocks of two layers with their modulations, and out with its own."""
    block = 2 * _HEAD**2 + 3 * _HEAD**2
    numbers = _CHANNELS * _HEAD + 2 * block + 2 * _HEAD**2 + 2 * _CHANNELS * _HEAD
    sizes = {"batch": rows, "count": count}
    work = graph_work(Bundle.read(mar_bundle), "head", [sizes])
    assert work.flops_at(sizes) == 2 * rows * count * numbers
    assert work.mac_weights == numbers


def _stages(found: Estimate) -> dict[tuple[str, int], Stage]:
    """By name and the step that they first run in."""
    bound = found.devices[0].precisions[0]
    return {(each.stage.name, each.stage.steps[0]): each.stage for each in bound.stages}


def test_what_is_repeated_counts_as_often_as_it_runs(mar_bundle: Path) -> None:
    """Beside a diffusion of one step: the operations of its body alone come on top."""
    bundle = Bundle.read(mar_bundle)

    def found(steps: str) -> Estimate:
        asked: dict[str, Any] = {"devices": ["thor"], "precisions": ["fp16"], "batch": 2}
        return estimate(bundle, **asked, iterations=2, diffusion_steps=steps)

    once, often = found("1"), found("5,7")
    ones, others = _stages(once), _stages(often)
    assert ones.keys() == others.keys()
    body = {"head", "diffusion_step", "advance"}
    more, milliseconds = 0, 0.0
    ms = {each.stage.title: each.ms for each in often.devices[0].precisions[0].stages}
    for (name, step), stage in ones.items():
        other = others[name, step]
        assert (other.flops, other.read_bytes, other.launches) == (
            *(stage.flops, stage.read_bytes, stage.launches),
        )
        assert set(other.steps) == set(stage.steps)
        for each in set(stage.steps):
            times = {0: 5, 1: 7}[each] if name in body else 1
            assert other.steps.count(each) == times * stage.steps.count(each)
            more += (times - 1) * stage.steps.count(each) * stage.launches
            milliseconds += (times - 1) * stage.steps.count(each) * ms[stage.title]
    assert often.launches - once.launches == more > 0
    short, long = (each.devices[0].precisions[0].batch_ms for each in (once, often))
    assert long - short == pytest.approx(milliseconds)


def test_a_plan_says_how_often(mar_bundle: Path) -> None:
    """Independent of the program: as many timesteps as the spacing has."""
    model = model_of(Bundle.read(mar_bundle))
    family = family_of("mar")
    chosen = settings_of(model.info.defaults, {"iterations": 4, "diffusion_steps": "50:5"})
    request = family.request(model, np.zeros(1, np.int32), np.zeros(1, np.uint64), chosen)
    program = family.program(model, family.key(model, request, 1))
    repeats = [op.times for op in program.ops if isinstance(op, Repeat)]
    steps = (5 + int((3 - k) / 3 * 45) for k in range(4))
    assert repeats == [len({min(each, 950) for each in timesteps(str(n))}) for n in steps]
    assert sum(1 for _ in program.unrolled()) == len(program.ops) - 4 + 3 * sum(repeats)


# --- shapes of engines


_MAX_BATCH = 3
_OPTIONS = BuildOptions(max_batch=_MAX_BATCH, opt_batch=(1, 2))


def _unguided(bundle: Bundle) -> Bundle:
    """The same without a class that is none, so that there is never a second half."""
    fields = bundle.manifest.model_dump()
    fields["model"]["condition"]["unconditional_id"] = None
    return Bundle(bundle.path, Manifest.model_validate(fields))


@pytest.fixture(scope="module")
def made(mar_bundle: Path) -> dict[bool, tuple[Model, dict[str, tuple[Profile, ...]]]]:
    """Model and profiles, with and without guidance."""
    bundle = Bundle.read(mar_bundle)
    found = {True: bundle, False: _unguided(bundle)}
    return {guided: (model_of(each), profiles(each, _OPTIONS)) for guided, each in found.items()}


def test_builders_take_the_profiles(
    mar_bundle: Path, made: dict[bool, tuple[Model, dict[str, tuple[Profile, ...]]]]
) -> None:
    graphs = Bundle.read(mar_bundle).manifest.graphs
    for guided, (model, found) in made.items():
        assert model.info.can_guide == guided
        assert found.keys() == graphs.keys() == {*_GRAPHS}
        for name, each in found.items():
            assert [*wrong_profiles(graphs[name], each)] == []
            assert len(each) == 2


def test_the_ends_of_the_profiles(
    made: dict[bool, tuple[Model, dict[str, tuple[Profile, ...]]]],
) -> None:
    """By hand: 16 tokens, 6 positions beside them, twice as many rows as images."""
    (encoder, _), (rest, _), (head, _) = (
        made[True][1][name] for name in ("encoder", "decoder_rest", "head")
    )
    tokens, past = encoder["tokens"], encoder["past_key_0"]
    assert (tokens.min, tokens.max) == ((0, 1, 12), (15, 6, 12))
    assert (past.min, past.max) == ((0, 1, 128), (14, 6, 128))
    hidden, wanted, others = rest["hidden"], rest["wanted"], rest["past_key_2"]
    assert (hidden.min, hidden.max) == ((17, 1, 32), (22, 6, 32))  # one new, one next, 15 more
    assert (wanted.min, wanted.max) == ((1,), (16,))
    assert (others.min, others.max) == ((0, 1, 32), (5, 6, 32))
    x = head["x"]
    assert (x.min, x.max) == ((1, 1, 12), (6, 16, 12))
    unguided = made[False][1]["head"][0]["x"]
    assert (unguided.min, unguided.max) == ((1, 1, 12), (3, 16, 12))


_PARTS = st.floats(0, 1)
_ASKED = st.fixed_dictionaries(
    {
        "iterations": st.integers(1, 16),
        "diffusion_steps": st.sampled_from(["1", "3:1", "ddim2"]),
        "guidance": st.sampled_from([1.0, (1.0, 2.0), (3.0, 3.0)]),
        "refresh": st.sampled_from([None, 1, 2, 3, 20]),
        "refresh_first": st.integers(1, 5),
        "recompute": st.none() | st.tuples(_PARTS, _PARTS),
        "reuse_guidance": st.booleans(),
    }
)


@settings(max_examples=150)
@given(
    asked=_ASKED, batch=st.integers(1, _MAX_BATCH), kept=st.integers(0, 15), guided=st.booleans()
)
def test_whatever_is_asked_for_lies_within_the_profiles(
    made: dict[bool, tuple[Model, dict[str, tuple[Profile, ...]]]],
    asked: dict[str, Any],
    batch: int,
    kept: int,
    guided: bool,
) -> None:
    model, found = made[guided]
    asked = {**asked, "iterations": min(asked["iterations"], 16 - kept)}
    if not guided:
        asked["guidance"] = 1.0
    if asked["refresh"] is None:
        asked["reuse_guidance"] = False
    edit = None
    if kept:
        where = (np.arange(16) < kept).reshape(1, 4, 4).repeat(batch, 0)
        edit = {"latents": np.zeros((batch, 3, 8, 8), np.float32), "given": where}
    family, chosen = family_of("mar"), settings_of(model.info.defaults, asked)
    seeds = np.arange(batch, dtype=np.uint64)
    request = family.request(model, np.zeros(batch, np.int32), seeds, chosen, edit)
    program = family.program(model, family.key(model, request, batch))
    for run, shapes in program.runs():
        for profile in found[run.graph]:
            for name, limits in profile.items():
                ends = zip(limits.min, shapes[name], limits.max, strict=True)
                assert all(low <= size <= high for low, size, high in ends), (run.graph, name)


@pytest.mark.slow
def test_engines_of_tensorrt_rtx_are_built_without_a_gpu(mar_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for x86-64 alone")
    path = Path(shutil.copytree(mar_bundle, tmp_path / "bundle"))
    options = BuildOptions(max_batch=2)
    asked = BuildRequest(path, "tensorrt-rtx", "fp32", ("8.6",), options=options, kernels=False)
    assert all(each.built for each in build(asked).engines)
    engines = {each.graph: each for each in Bundle.read(path).manifest.engines}
    assert engines.keys() == {*_GRAPHS}
    assert engines["encoder"].profiles[0]["tokens"].min[0] == 0
    assert engines["decoder_rest"].profiles[0]["past_key_2"].max == (5, 4, 32)
