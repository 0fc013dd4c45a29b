"""From words of a request to a job, for every family; texts; what families say of settings."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.exported import copy_of
from tests.serving import LONG_S, opening, serving, working

from fewstep.cli.record import order_of, read_record
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.edit.windows import growth_of, windows
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families import Model, family_of, model_of
from fewstep.runtime.families.masked.family import PARAMETERS, PARAMETERS_IN_ORDER
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels import sample_tokens, sample_top_k_top_p
from fewstep.runtime.program import Program
from fewstep.server.errors import FieldError
from fewstep.server.job import Job
from fewstep.server.models import settings_described
from fewstep.server.order import Checks, Order
from fewstep.server.pictures import encoded
from fewstep.server.recorded import recorded


def _job(bundle: Path, prompt: str = "0", **order: Any) -> Job:
    model = model_of(Bundle.read(bundle))
    return Order(prompt, **order).job(model, Checks(model))


@pytest.fixture(scope="session")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """aMUSEd with a text encoder."""
    pytest.importorskip("tokenizers")
    return copy_of("tiny-amused", tmp_path_factory.mktemp("bundles") / "tiny-amused")


@pytest.fixture(params=["tiny_bundle", "var_bundle", "mar_bundle"])
def any_bundle(request: pytest.FixtureRequest) -> Path:
    """A bundle of every family."""
    found: Path = request.getfixturevalue(request.param)
    return found


def _model(bundle: Path) -> Model:
    return model_of(Bundle.read(bundle))


def test_steps_are_those_that_a_generation_takes(any_bundle: Path) -> None:
    steps = list[int]()
    with Generator.open(any_bundle, threads=1) as generator:
        generator(0, callback=lambda step, preview: steps.append(step))
    assert _job(any_bundle).steps == len(steps)


def test_parameters_have_a_row_for_every_step_image_and_name(any_bundle: Path) -> None:
    with working(opening(any_bundle)) as worker:
        job = Order("1", count=2, seed=1).job(worker.model, worker.checks)
        made = worker.submit(job).future.result(LONG_S)
    assert made.parameters is not None
    names, numbers = made.parameters
    assert numbers.shape == (made.steps, 2, len(names)) and np.isfinite(numbers).all()
    guidance = numbers[:, 0, names.index("guidance")]
    assert guidance[-1] == max(guidance)  # all families' rise


def test_numbers_of_diffusers_mean_the_same_here(any_bundle: Path) -> None:
    aliases = family_of(_model(any_bundle).info.kind).Settings.diffusers
    theirs = _job(any_bundle, settings={"num_inference_steps": 4, "guidance_scale": 3})
    steps, guidance = aliases["num_inference_steps"], aliases["guidance_scale"]
    ours = {steps.name: 4, guidance.name: 3 - guidance.less}
    assert theirs.kind == _job(any_bundle, settings=ours).kind
    assert aliases["guidance_scale"].value(0.5) == (0 if guidance.less else 0.5)


def test_settings_are_described_as_pydantic_reads_them(any_bundle: Path) -> None:
    model = _model(any_bundle)
    family = family_of(model.info.kind)
    told = settings_described(model.info.defaults, family.choices(model))
    assert told.keys() == family.Settings.model_fields.keys()
    assert family.choices(model).keys() <= told.keys()
    right = {"integer": 2, "ramp": "0.5:0.9", "boolean": True, "number": 0.5}
    for name, each in told.items():
        assert each["type"] in (*right, "string") and each["description"]
        if each["type"] == "ramp":
            value = {"top_k": "3:2", "guidance": "1:2"}.get(name, right["ramp"])
            family.Settings.model_validate({name: value})
        elif each["type"] != "string":
            family.Settings.model_validate({name: right[each["type"]]})
        family.Settings.model_validate({name: each["default"]})


def test_names_of_parameters_are_the_kernels() -> None:
    assert PARAMETERS == sample_tokens.PARAMETERS
    assert PARAMETERS_IN_ORDER == sample_top_k_top_p.PARAMETERS


@pytest.mark.parametrize("name", ["a.json", "/etc/x.YAML", "../b.yml"])
def test_no_setting_opens_a_file(tiny_bundle: Path, name: str) -> None:
    with pytest.raises(RequestError, match="cannot name files"):
        _job(tiny_bundle, settings={"schedule": name})


def test_a_schedule_may_be_its_values(tiny_bundle: Path) -> None:
    values = {"mask_ratio": [0.9, 0.5, 0.0], "guidance": [0, 1, 2]}
    job = _job(tiny_bundle, settings={"schedule": values})
    assert job.steps == 3 and job.settings["guidance"] == "0.0,1.0,2.0"
    assert job.kind == _job(tiny_bundle, settings={**job.settings}).kind


@pytest.mark.parametrize(
    "order",
    [{"count": 0}, {"count": 17}, {"seed": 2**64}, {"seed": 2**64 - 1, "count": 2}],
)
def test_what_is_out_of_range_is_told(tiny_bundle: Path, order: dict[str, Any]) -> None:
    with pytest.raises(FieldError):
        _job(tiny_bundle, **order)


@pytest.mark.parametrize(
    ("outpaint", "count"),
    [({"top": 4}, 1), ({"left": 16}, 2), ({"left": 3, "right": 8, "bottom": 8}, 3), ({}, 4)],
)
def test_windows_of_an_edit_are_counted(
    edit_bundle: Path, outpaint: dict[str, int], count: int
) -> None:
    model = model_of(Bundle.read(edit_bundle))
    edit: dict[str, Any] = {"image": np.zeros((8, 20, 3), np.uint8), "mask": np.eye(8, 20) > 0}
    left, top, right, bottom = 0, 0, 0, 0
    if outpaint:
        left, top, right, bottom = growth_of(outpaint).values()
        edit = {"image": np.zeros((8, 8, 3), np.uint8), "outpaint": outpaint}
    unknown = np.pad(
        edit.get("mask", np.zeros((8, 8), np.bool_)),
        ((top, bottom), (left, right)),
        constant_values=True,
    )
    planned = len([*windows(unknown, (8, 8), model.info.cell, (top, left))])
    job = _job(edit_bundle, count=count, edit=edit)
    assert planned / 2 <= job.windows <= 2 * planned and job.load == count * job.windows
    assert job.timed != _job(edit_bundle, count=count).timed


@pytest.mark.parametrize(("pixels", "count"), [(1024, 1), (1024, 16), (40, 16)])
def test_edits_of_too_many_windows_are_refused(edit_bundle: Path, pixels: int, count: int) -> None:
    sides = dict.fromkeys(("left", "top", "right", "bottom"), pixels)
    with pytest.raises(FieldError, match="128 in all are the most") as refused:
        picture = np.zeros((8, 8, 3), np.uint8)
        _job(edit_bundle, count=count, edit={"image": picture, "outpaint": sides})
    assert refused.value.field == "outpaint"
    large = {"image": np.zeros((256, 256, 3), np.uint8), "mask": np.ones((256, 256), np.bool_)}
    with pytest.raises(FieldError, match="128 in all are the most") as refused:
        _job(edit_bundle, count=count, edit=large)
    assert refused.value.field == "mask"


def test_texts_and_negative_texts_are_prompts(text_bundle: Path) -> None:
    with working(opening(text_bundle, max_batch=4)) as worker:
        wanted = [("bag", None), ("shoe", "red"), ("bag", "red")]
        jobs = [
            Order(text, count=2, seed=3, negative=no).job(worker.model, worker.checks)
            for text, no in wanted
        ]
        assert jobs[0].kind != jobs[1].kind == jobs[2].kind
        made = [worker.submit(job).future.result(LONG_S) for job in jobs]
    with Generator.open(text_bundle, threads=1) as generator:
        for (text, no), each in zip(wanted, made, strict=True):
            alone = generator.generate(text=[text] * 2, negative=no, seed=3)
            assert np.array_equal(each.pixels, alone.images)


def test_an_image_of_a_text_says_its_text(text_bundle: Path, tmp_path: Path) -> None:
    with working(opening(text_bundle)) as worker:
        job = Order("bag", count=2, seed=3, negative="red").job(worker.model, worker.checks)
        made = worker.submit(job).future.result(LONG_S)
        file = tmp_path / "image.png"
        image = encoded(made.pixels[1], record=recorded(worker, job, made.seeds[1]))
        file.write_bytes(base64.b64decode(image))
    record = read_record(file)
    with Generator.open(text_bundle, threads=1) as generator:
        order = order_of(record, generator.model.info.condition, None)
        again = generator.generate(**order.take([0]), **record["settings"])
        assert np.array_equal(again.images[0], made.pixels[1]) and order.prompts == ("bag",)


def test_what_a_request_is_warned_of_is_a_note_of_its_own_answer(
    text_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving([opening(text_bundle)]) as served:
        long, short = (
            served.post("/v1/images/generations", prompt=each).json()["fewstep"]["notes"]
            for each in ("a red bag and more than that", "bag")
        )
        again = served.post("/v1/images/generations", prompt="a red bag and more than that")
    assert len(long) == 1 and "has more than 7 tokens" in long[0] and not short
    assert again.json()["fewstep"]["notes"] == long
    assert capsys.readouterr().err == ""


def test_a_bundle_without_a_text_encoder_reads_no_prompts(tiny_text_bundle: Path) -> None:
    with pytest.raises(RequestError, match="no text encoder"):
        _job(tiny_text_bundle, "a bag")


def test_settings_that_are_kept_do_not_mix(any_bundle: Path) -> None:
    model = _model(any_bundle)
    checks = Checks(model)
    amounts = [Order("0", settings={"guidance": each}).job(model, checks) for each in (1, 2, 1)]
    first, other, again = ((job.kind, job.settings) for job in amounts)
    assert first == again != other
    assert [job.settings for job in amounts] == [
        _job(any_bundle, settings={"guidance": each}).settings for each in (1, 2, 1)
    ]
    for _ in range(2):
        with pytest.raises(FieldError, match="guidance"):
            Order("0", settings={"guidance": "much"}).job(model, checks)


def test_programs_are_made_once_for_all_amounts_of_guidance(
    any_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making one takes long, and nobody else is answered meanwhile."""
    model = _model(any_bundle)
    family, made, checks = family_of(model.info.kind), list[Any](), Checks(model)
    real = family.program

    def program(model: Model, key: Any) -> Program:
        made.append(key)
        return real(model, key)

    monkeypatch.setattr(family, "program", program)
    for each in (1.5, 1.75, 2.5):
        Order("0", settings={"guidance": each}).job(model, checks)
    assert len(made) == 1


def test_long_settings_are_not_kept(tiny_bundle: Path) -> None:
    model = _model(tiny_bundle)
    checks = Checks(model)
    for each in range(3):
        blanks = " " * (100_000 + each)
        Order("0", settings={"softmax_temperature": "1" + blanks}).job(model, checks)
    assert checks._found.cache_info().currsize == 0
