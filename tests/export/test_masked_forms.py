"""MaskGIT's public forms from files to images: what the manifest says, that a bundle decodes as
PyTorch recorded it, in any order of positions, in lower precision, and what does not fit.

The decode itself is compared with the authors' recordings in ``tests/test_official.py``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny
from tests.tiny_forms import CLASSES, CODES, FORMS, Form

from fewstep.build.estimate import estimate
from fewstep.build.graph_work import graph_work
from fewstep.build.pipeline import BuildRequest, preflight_only
from fewstep.build.variants import add_variant
from fewstep.calibration.quantize.flow import QuantizeRequest, quantize
from fewstep.calibration.quantize.settings import Settings
from fewstep.export.flow import export
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import CheckpointError, RequestError
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.families.masked.order import ORDERS
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


@pytest.fixture(scope="module")
def bundle(form: Form, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("form")
    return export(form.name, form.write(folder), folder / "bundle")


def _info(bundle: Bundle) -> MaskedModel:
    info = bundle.manifest.model
    assert isinstance(info, MaskedModel)
    return info


def test_what_the_manifest_says(bundle: Bundle, form: Form) -> None:
    info = _info(bundle)
    assert (info.codebook_size, info.num_tokens, info.mask_token) == (CODES, 16, CODES)
    nothing = None if form.name == "maskgit-torch" else CLASSES
    assert info.condition.unconditional_id == nothing  # type: ignore[union-attr]
    assert len(info.condition.ids) == CLASSES  # type: ignore[union-attr]
    assert info.logits_width == CODES + (form.name == "halton")
    assert info.defaults.steps <= 16
    if form.name == "titok":
        assert (info.grid, info.rules.confidence, info.rules.ties) == ((1, 16), "logit", "masked")
    elif form.name == "halton":
        assert (info.defaults.order, info.rules.known) == ("halton", "resampled")
        assert list(info.presets) == ["demo", "confidence"]
    else:
        assert (info.rules.last_token, info.defaults.guidance) == ("decided", (0, 0))


def test_golden_rollouts_are_repeated(bundle: Bundle) -> None:
    with Generator.open(bundle, threads=1) as generator:
        report = verify(generator)
    assert report.checks
    assert all(check.passed for check in report.checks)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_decides_every_token(bundle: Bundle, order: str) -> None:
    classes, seeds = [0, 3, CLASSES - 1], [1, 2, 3]
    with Generator.open(bundle, threads=1) as generator:
        made = generator.generate(class_ids=classes, seed=seeds, steps=5, order=order)
        alone = generator.generate(class_ids=[3], seed=[2], steps=5, order=order)
        trace, info = made.trace, _info(bundle)
        final = trace.final
        assert ((final >= 0) & (final < info.logits_width)).all()
        masked = (trace.tokens == info.mask_token).sum(2)
        assert (masked[0] == 16).all()
        assert made.images.std() > 0
        np.testing.assert_array_equal(alone.trace.final[0], final[1])
        preview = generator.family.preview(generator.model, trace, 2)
        assert preview.undecided.sum() == masked[3].sum()
        assert preview.inputs["tokens"].max() < info.logits_width


def test_known_orders_follow_the_schedule_and_filters(bundle: Bundle) -> None:
    given: dict[str, Any] = {"class_ids": [1, 2], "seed": 5, "steps": 4, "order": "halton"}
    with Generator.open(bundle, threads=1) as generator:
        made = generator.generate(**given, top_k=1)
        again = generator.generate(**given, top_p=0.0)
        request = generator.request(**given)
    np.testing.assert_array_equal(made.trace.final, again.trace.final)  # the likeliest code
    turns = request.order.ranks
    for step, decided in enumerate(request.order.decided):
        open_still = made.trace.tokens[step] == _info(bundle).mask_token
        assert open_still[turns >= decided[:, None]].all()


def test_given_tokens_stay(bundle: Bundle, form: Form) -> None:
    given = np.random.default_rng(0).integers(0, CODES, (2, 16)).astype(np.int32)
    mask = np.zeros((2, 16), bool)
    mask[0, 4:], mask[1, 11:] = True, True
    with Generator.open(bundle, threads=1) as generator:
        for order in ORDERS:
            edit = {"given": given, "mask": mask}
            request = generator.request(class_ids=[0, 1], steps=4, order=order, edit=edit)
            final = generator.run(request).trace.final
            np.testing.assert_array_equal(final[~mask], given[~mask])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "spiral"}, "order"),
        ({"top_k": 3, "order": "confidence"}, "top_k and top_p need an order"),
        ({"top_p": 0.5, "order": "confidence"}, "top_k and top_p need an order"),
        ({"preset": "none"}, "no preset 'none'"),
        ({"steps": 17}, "steps must be 1 … 16"),
    ],
)
def test_settings_that_do_not_fit(bundle: Bundle, settings: dict[str, Any], message: str) -> None:
    with (
        Generator.open(bundle, threads=1) as generator,
        pytest.raises(RequestError, match=message),
    ):
        generator.request(class_ids=[0], **settings)


def test_without_a_class_of_none_there_is_no_guidance(tmp_path: Path) -> None:
    form = FORMS["maskgit-torch"]
    made = export(form.name, form.write(tmp_path), tmp_path / "bundle")
    with (
        Generator.open(made, threads=1) as generator,
        pytest.raises(RequestError, match="no unconditional class"),
    ):
        generator.request(class_ids=[0], guidance=2)


def test_presets_fit_the_number_of_tokens(bundle: Bundle) -> None:
    with Generator.open(bundle, threads=1) as generator:
        for name in _info(bundle).presets:
            assert generator.request(class_ids=[0], preset=name).steps <= 16


def test_its_decoder_quantizes(bundle: Bundle, tmp_path: Path) -> None:
    """Whatever it is made of: convolutions, norms of all kinds, a transformer."""
    path = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    settings = Settings(rollouts=2, held_out=2, generation={"steps": 2})
    made = quantize(QuantizeRequest(path, settings, graphs=frozenset({"decoder"})))
    (graph,) = made.graphs
    assert graph.record.psnr_db is not None and 25 < graph.record.psnr_db < 120
    assert graph.record.convolutions and graph.matmuls - len(graph.record.kept) >= 5
    assert all(operator == "rules" for operator in graph.record.kept.values())


def test_an_unknown_growth_of_the_guidance_is_refused(tmp_path: Path) -> None:
    given = FORMS["titok"].write(tmp_path)
    config = json.loads(given["config"].read_text())
    config["transformer"]["guidance_decay"] = "cubic"
    given["config"].write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="constant or linear or power-cosine, got 'cubic'"):
        export("titok", given, tmp_path / "bundle")


def test_no_note_names_an_option_that_the_form_lacks(form: Form, tmp_path: Path) -> None:
    notes = list[str]()
    export(form.name, form.write(tmp_path), tmp_path / "bundle", note=notes.append)
    assert not [note for note in notes if "--pixel-range" in note]


def test_another_codebook_is_refused(form: Form, tmp_path: Path) -> None:
    codes = {"codebook_size": CODES + 8}
    if form.name == "maskgit-torch":
        codes["num_codebook_vectors"] = CODES + 8 + CLASSES + 1
    with pytest.raises(CheckpointError, match="do not belong together") as caught:
        export(form.name, form.write(tmp_path, **codes), tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("other", FORMS)
def test_the_tokenizer_of_another_form_is_refused(form: Form, other: str, tmp_path: Path) -> None:
    if FORMS[other].name == form.name:
        pytest.skip("the same tokenizer")
    (tmp_path / "own").mkdir()
    (tmp_path / "other").mkdir()
    given = form.write(tmp_path / "own")
    given["tokenizer"] = FORMS[other].write(tmp_path / "other")["tokenizer"]
    with pytest.raises(CheckpointError) as caught:
        export(form.name, given, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "said",
    [
        {"latent_scale": 0.5},
        {"policy_schedule": {"guidance": 1}},
        {"pixel_range": [0, 1]},
        {"defaults": {"order": "spiral"}},
        {"defaults": {"steps": 99}},
        {"presets": {"fast": {"guidance": -1}}},
        {"presets": {"fast": {"preset": "fast"}}},
        {"class_names": ["a", "b"]},
        {"transformer": {"nonsense": 3}},
        {"tokenizer": {"nonsense": 3}},
    ],
)
def test_configurations_that_do_not_fit(form: Form, said: dict[str, Any], tmp_path: Path) -> None:
    given = form.write(tmp_path)
    config = json.loads(given["config"].read_text())
    given["config"].write_text(json.dumps({**config, **said}))
    with pytest.raises(CheckpointError) as caught:
        export(form.name, given, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


# --- lower precision, preflight and estimates

_W, _N = 32, 16
_FEW = Settings(rollouts=2, held_out=1, generation={"steps": 4})


def _blocks(
    positions: int, layers: int, hidden: int = 2 * _W, matrices: int = 2, skips: int = 0
) -> int:
    """Products of attention and feed-forward layers, of a row."""
    weights = 4 * _W**2 + matrices * _W * hidden
    return positions * (layers * (weights + 2 * positions * _W) + skips * 2 * _W**2)


_PRODUCTS: dict[str, int] = {
    "maskgit-torch": _blocks(_N + 1, 2) + _N * (_W**2 + _W * CODES),
    "titok": _blocks(_N + 1, 2) + _N * _W * CODES,
    "titok, U-ViT": _blocks(_N + 1, 3, skips=1) + _N * _W * CODES,
    # Three registers; SwiGLU of three matrices; modulations are of a row, not of a position.
    "halton": _blocks(_N + 3, 2, 256, 3) + (2 * 6 + 2) * _W**2 + _N * _W * (CODES + 1),
    "adagen": _blocks(_N + 1, 3, 4 * _W, skips=1) + _N * (_W**2 + _W * (CODES + 1)),
}
"""Multiplications of a row of the transformer, by hand."""


def test_lower_precisions_preflight_and_estimates(
    bundle: Bundle, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    _lowered_and_estimated(copy, _PRODUCTS[request.node.callspec.params["form"]])


def test_the_same_of_adagen(tmp_path: Path) -> None:
    given = tiny.checkpoints(tmp_path)
    config = json.loads(given["config"].read_text())
    del config["policy_residual"]
    given["config"].write_text(json.dumps(config))
    given["policy"] = None
    made = export("adagen", {**given, "untrained_policy": True}, tmp_path / "bundle")
    _lowered_and_estimated(made.path, _PRODUCTS["adagen"])


def _lowered_and_estimated(path: Path, products: int) -> None:
    """fp16 and int8 graphs pass verification, make images and are fit for engines; an estimate has
    the operations that were counted by hand."""
    add_variant(Bundle.read(path), "fp16")
    quantize(QuantizeRequest(path, _FEW))
    for precision in ("fp16", "int8"):
        with Generator.open(path, precision=precision, threads=1) as generator:
            assert verify(generator).passed, precision
            assert len(generator.generate(class_ids=[0, 4]).images) == 2
        asked = BuildRequest(path, "tensorrt-rtx", precision, ("8.6",), kernels=False)
        assert preflight_only(asked).as_dict()["problems"] == []
    made, rows = Bundle.read(path), {"batch": 3}
    assert graph_work(made, "transformer", [rows]).flops_at(rows) == 3 * 2 * products
    guided = made.manifest.model.condition.unconditional_id is not None  # type: ignore[union-attr]
    for bound in (
        estimate(made, devices=["thor"], precisions=["fp16", "int8"]).devices[0].precisions
    ):
        steps = len(bound.steps_ms)
        stages = [each.stage for each in bound.stages if each.stage.name == "transformer"]
        # Step 0 is known of other images, but for texts: there its unconditional half alone.
        by_class = made.manifest.model.condition.kind == "class"
        passes = (steps - 1) * (1 + guided) + (not by_class)
        assert sum(each.flops * len(each.steps) for each in stages) == passes * 2 * products
