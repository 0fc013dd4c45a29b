"""How often MAR's graphs run, and on how much: the program of a request, without running it.

Covered: rows and lengths of every graph with and without guidance, between refreshes, and with
tokens that are given; what the program copies and keeps; and that the family's corners enclose the
shapes of all requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families import Model, family_of, model_of
from fewstep.runtime.families.mar.model import MarModel
from fewstep.runtime.program import Program, Repeat
from fewstep.runtime.request import checked_request

KNOWN, COUNTS = [0, 1, 3, 5, 8, 12], [1, 2, 2, 3, 4, 4]  # of 6 iterations
CHANNELS, WIDTH, POSITIONS, CACHED, HEAD = 12, 32, 22, 128, 24

Shape = tuple[int, ...]


@pytest.fixture(scope="module")
def model(mar_bundle: Path) -> Model:
    return model_of(Bundle.read(mar_bundle))


def _program(model: Model, batch: int = 3, given: int = 0, **settings: Any) -> Program:
    edit = None
    if given:
        where = np.arange(16) < given
        latents = np.zeros((batch, 3, 8, 8))
        edit = {"latents": latents, "given": np.tile(where.reshape(4, 4), (batch, 1, 1))}
    request = checked_request(
        model, class_ids=[0] * batch, text=None, seed=0, settings=settings, edit=edit
    )
    family = family_of("mar")
    return family.program(model, family.key(model, request, batch))


def _shapes(program: Program, graph: str, *names: str) -> list[tuple[Shape, ...]]:
    return [
        tuple(shapes[name] for name in names)
        for run, shapes in program.runs()
        if run.graph == graph
    ]


def test_the_encoder_reads_what_is_known(model: Model) -> None:
    for settings, rows in (({}, 6), ({"guidance": 1}, 3)):
        found = _shapes(
            _program(model, **settings), "encoder", "tokens", "past_key_1", "new_value_0"
        )
        assert found == [
            ((known, rows, CHANNELS), (0, rows, CACHED), (known, rows, CACHED)) for known in KNOWN
        ]


def test_the_decoder_computes_every_position_and_gives_the_next_tokens(model: Model) -> None:
    program = _program(model)
    start = _shapes(program, "decoder_start", "embeds", "order", "hidden")
    hidden = (POSITIONS, 6, WIDTH)
    assert start == [((known, 6, WIDTH), (16, 6), hidden) for known in KNOWN]
    rest = _shapes(program, "decoder_rest", "hidden", "wanted", "output", "past_key_2")
    none = (0, 6, WIDTH)
    assert rest == [(hidden, (count,), (count, 6, WIDTH), none) for count in COUNTS]
    assert _shapes(program, "readout", "z") == [((6, count, WIDTH),) for count in COUNTS]
    assert _shapes(program, "decoder", "tokens") == [((3, 16, CHANNELS),)]


def test_the_head_runs_as_often_as_there_are_diffusion_steps(model: Model) -> None:
    program = _program(model, diffusion_steps="12:2", max_timestep=999)
    wanted = [
        ((6, count, CHANNELS), (6, count, HEAD))
        for count, steps in zip(COUNTS, (12, 10, 8, 6, 4, 2), strict=True)
        for _ in range(steps)
    ]
    assert _shapes(program, "head", "x", "embedded") == wanted
    repeats = [op for op in program.ops if isinstance(op, Repeat)]
    assert [op.times for op in repeats] == [12, 10, 8, 6, 4, 2]
    assert {len(op.ops) for op in repeats} == {3}  # head, diffusion_step, advance


def test_between_refreshes_little_is_computed(model: Model) -> None:
    program = _program(
        model, batch=1, iterations=16, refresh=4, refresh_first=2, recompute="0," * 12 + "1,1,1,1"
    )
    refreshed = {0, 1, 2, 6, 10, 14}
    encoder, rest = list[tuple[Shape, ...]](), list[tuple[Shape, ...]]()
    for step in range(16):
        length, past = (step, 0) if step in refreshed else (1, step - 1)
        encoder.append(((length, 2, CHANNELS), (past, 2, CACHED)))
        some = 1 + 1 + 15 if step not in refreshed and step < 12 else POSITIONS
        rest.append(((some, 2, WIDTH), (POSITIONS - some if some < POSITIONS else 0, 2, WIDTH)))
    assert _shapes(program, "encoder", "tokens", "past_value_0") == encoder
    assert _shapes(program, "decoder_rest", "hidden", "past_key_4") == rest
    assert _shapes(program, "decoder_start", "hidden") == [((POSITIONS, 2, WIDTH),)] * 16


def test_the_unconditional_half_runs_at_refreshes(model: Model) -> None:
    program = _program(
        model, batch=2, iterations=16, refresh=4, refresh_first=2, reuse_guidance=True
    )
    runs = [
        (run.step, run.bindings["condition"].buffer, shapes["tokens"][1])
        for run, shapes in program.runs()
        if run.graph == "encoder"
    ]
    wanted = [
        (step, condition, 2)
        for step in range(16)
        for condition in ("unconditional", "condition")
        if condition == "condition" or step in {0, 1, 2, 6, 10, 14}
    ]
    assert runs == wanted
    assert _shapes(program, "readout", "output") == [((1, 4, WIDTH),)] * 16
    # A refresh gives the output of all tokens up to the next, and the others that of their own.
    found = {
        run.step: shapes["wanted"] for run, shapes in program.runs() if run.graph == "decoder_rest"
    }
    refreshes = {0: 1, 1: 1, 2: 4, 6: 4, 10: 4, 14: 2}
    assert found == {step: (refreshes.get(step, 1),) for step in range(16)}


def test_given_tokens_are_known_from_the_start(model: Model) -> None:
    program = _program(model, given=10, iterations=3)
    lengths = [shape[0] for (shape,) in _shapes(program, "encoder", "tokens")]
    assert lengths == [10, 11, 13]  # of the 6 others ⌊6·cos(π/2·n/3)⌋ are left: 5 and 3
    assert [shape[0] for (shape,) in _shapes(program, "readout", "output")] == [1, 2, 3]


def test_caches_are_kept_where_they_are_needed_alone(model: Model) -> None:
    whole = _program(model).buffers
    for name in ("past_cache", "new_cache", "selected", "difference", "both"):
        assert name not in whole
    everything = _program(model, refresh=2, refresh_first=1, recompute=1).buffers
    assert everything["value"].shape[0] == 2
    assert "selected" not in everything
    parts = _program(model, refresh=2, refresh_first=1).buffers
    assert {"selected", "rest", "similarity", "past_cache", "new_cache"} <= parts.keys()
    assert "difference" not in parts
    halves = _program(model, refresh=2, refresh_first=1, reuse_guidance=True).buffers
    assert {"difference", "both", "unconditional"} <= halves.keys()
    assert halves["encoder_cache"].bytes == parts["encoder_cache"].bytes // 2


def test_a_large_model_takes_the_steps_that_disa_counts(model: Model) -> None:
    """256 tokens in 64 iterations, 50 to 5 diffusion steps of the head: 1,681 with the cap."""
    large = _large(model)
    program = _program(large, batch=1, iterations=64, diffusion_steps="50:5")
    assert len(_shapes(program, "head", "x")) == 1681
    uncapped = _program(large, batch=1, iterations=64, diffusion_steps="50:5", max_timestep=999)
    assert (
        len(_shapes(uncapped, "head", "x")) == 1733
    )  # 5 + int((63 − i) / 63 · 45) of every iteration
    rows = sum(x[1] for (x, *_) in _shapes(uncapped, "head", "x"))
    assert rows == 5372  # of tokens, as the notes of the official code have it


def _large(model: Model) -> Model:
    info: MarModel = model.info
    large = info.model_copy(update={"side": 16, "buffer_size": 64, "image_size": (64, 64)})
    return Model(large, model.graphs)


def _ranges(programs: Iterator[Program]) -> dict[tuple[str, str, int], tuple[int, int]]:
    """The least and the most of every dimension of every input."""
    found: dict[tuple[str, str, int], tuple[int, int]] = {}
    for program in programs:
        for run, shapes in program.runs():
            for name, shape in shapes.items():
                for axis, size in enumerate(shape):
                    at = run.graph, name, axis
                    low, high = found.get(at, (size, size))
                    found[at] = min(low, size), max(high, size)
    return found


@pytest.fixture(scope="module")
def limits(model: Model) -> dict[tuple[str, str, int], tuple[int, int]]:
    family = family_of("mar")
    keys = [key for batch in (1, 2) for key in family.corners(model, batch)]
    return _ranges(family.program(model, key) for key in keys)


SETTINGS = st.fixed_dictionaries(
    {"iterations": st.integers(1, 16), "guidance": st.sampled_from([1, 2, "3:3"])},
    optional={
        "refresh": st.integers(2, 20),
        "refresh_first": st.integers(1, 8),
        "recompute": st.sampled_from([0, 0.5, 0.9, 1, "0:1", "1:0.3"]),
    },
)


@given(settings=SETTINGS, reuse=st.booleans(), kept=st.integers(0, 15), batch=st.integers(1, 2))
def test_corners_enclose_every_request(
    model: Model,
    limits: dict[tuple[str, str, int], tuple[int, int]],
    settings: dict[str, Any],
    reuse: bool,
    kept: int,
    batch: int,
) -> None:
    more = {
        "iterations": min(settings["iterations"], 16 - kept),
        "reuse_guidance": reuse and "refresh" in settings,
        "diffusion_steps": 1,
    }
    program = _program(model, batch, kept, **{**settings, **more})
    outside = [
        (at, size, limits[at])
        for at, size in _ranges(iter([program])).items()
        if not limits[at][0] <= size[0] <= size[1] <= limits[at][1]
    ]
    assert not outside
