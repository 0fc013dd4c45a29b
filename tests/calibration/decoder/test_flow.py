"""``fewstep calibrate decoder`` on every family: smaller, better than nothing, and in its place."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.build.graph_work import graph_work
from fewstep.build.profiles import profiles
from fewstep.build.stale import why_graphs_stale
from fewstep.build.variants import add_variant
from fewstep.calibration.decoder.flow import Distilled, distill
from fewstep.calibration.decoder.options import DecoderOptions
from fewstep.export.decoder_file import load_decoder
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import CalibrationError, OutputError, RequestError
from fewstep.runtime.families import Preview
from fewstep.runtime.generator import Generator
from fewstep.runtime.inspect import planned_decode
from fewstep.runtime.preview import StepPreview
from fewstep.runtime.records import BuildOptions
from fewstep.runtime.verify import verify

_SHORT: dict[str, dict[str, Any]] = {
    "masked": {"steps": 3},
    "var": {},
    "mar": {"iterations": 2, "diffusion_steps": "4", "max_timestep": 300},
}
"""Settings of short rollouts, by family."""


@dataclass(frozen=True)
class Made:
    """A bundle with a small decoder: of which family, what was asked for, and what came of it."""

    kind: str
    options: DecoderOptions
    distilled: Distilled

    @property
    def bundle(self) -> Bundle:
        """As it is now."""
        return Bundle.read(self.options.bundle)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The same sums on every machine, and the former number of threads afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _options(path: Path, kind: str = "masked", **changes: Any) -> DecoderOptions:
    options = DecoderOptions(
        path,
        images=48,
        held_out=16,
        updates=200,
        settings=_SHORT[kind],
        backend="onnxruntime",
        threads=1,
    )
    return replace(options, **changes)


@pytest.fixture(scope="session", params=["masked", "var", "mar"])
def made(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    """A small decoder in a bundle of each family; the masked one has fp16 graphs already."""
    kind = request.param
    name = "tiny_bundle" if kind == "masked" else f"{kind}_bundle"
    path = tmp_path_factory.mktemp("small") / kind
    shutil.copytree(request.getfixturevalue(name), path)
    if kind == "masked":
        add_variant(Bundle.read(path), "fp16")
    options = _options(path, kind)
    return Made(kind, options, distill(options, command="pytest"))


@pytest.fixture(scope="session")
def images(made: Made) -> dict[str, Any]:
    """What each decoder draws of the same images, which it has not learned from."""
    with Generator.open(made.bundle, threads=1) as generator:
        asked: dict[str, Any] = {"class_ids": [0, 1, 2, 3, 4] * 3, "seed": 9_000}
        return {
            name: generator.generate(**asked, **_SHORT[made.kind], decoder=name)
            for name in ("full", "small")
        }


def _files(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


def _psnr(a: Any, b: Any) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def test_it_has_eight_times_fewer_operations(made: Made) -> None:
    """As ``fewstep estimate`` counts them."""
    one = {"batch": 1}
    full, small = (
        graph_work(made.bundle, graph, [one]).flops_at(one)
        for graph in ("decoder", "decoder-small")
    )
    info = made.bundle.manifest.model.decoders["small"]
    assert (info.full_flops, info.flops) == (full, small)
    assert full >= 8 * small > full / 20


def test_it_draws_nearly_what_the_full_one_draws(made: Made, images: dict[str, Any]) -> None:
    full, small = images["full"].images, images["small"].images
    assert made.distilled.info.psnr_db > made.distilled.untrained_psnr_db + 1
    constant = np.broadcast_to(full.mean((0, 1, 2)), full.shape)
    assert _psnr(small, full) > _psnr(constant, full)


def test_tokens_are_the_same_and_images_are_not(images: dict[str, Any]) -> None:
    full, small = images["full"], images["small"]
    for name, decided in full.trace.decisions.items():
        np.testing.assert_array_equal(decided, small.trace.decisions[name])
    assert not np.array_equal(full.images, small.images)
    assert full.timings_ms.keys() == small.timings_ms.keys()


def test_engines_are_verified_and_profiles_know_it(made: Made) -> None:
    bundle = made.bundle
    assert bundle.damage() == {}
    for precision in bundle.precisions:
        with Generator.open(bundle, precision=precision, threads=1) as generator:
            report = verify(generator)
        assert report.passed, report
        assert {each.graph for each in report.checks if each.rollout == "decoder-small"} >= {
            "decoder-small",
            "loop",
        }
    known = profiles(bundle, BuildOptions(max_batch=4, opt_batch=(1, 4)))
    (tensor,) = bundle.graph("decoder").inputs
    assert [each[tensor].max[0] for each in known["decoder-small"]] == [4, 4]


def test_variants_have_it_in_the_precision_of_the_full_one(made: Made) -> None:
    if made.kind != "masked":
        pytest.skip("has no variants")
    assert made.bundle.graph("decoder-small", "fp16").precision == "fp16"
    assert not why_graphs_stale(made.bundle, "fp16")


def test_previews_are_drawn_by_the_decoder_of_the_images(made: Made) -> None:
    seen: list[Any] = []

    def after(step: int, preview: StepPreview) -> None:
        seen.append(preview.pixels)

    with Generator.open(made.bundle, threads=1) as generator:
        request = generator.request(class_ids=[1, 2], **_SHORT[made.kind], decoder="small")
        result = generator.run(request, callback=after)
    assert result.decoder == "decoder-small"
    np.testing.assert_array_equal(seen[-1], result.images)


def test_an_unknown_decoder_is_told_what_there_is(made: Made, tiny_bundle: Path) -> None:
    for bundle, name, words in (
        (made.bundle, "smal", "unknown decoder 'smal'.*: full, small.*Did you mean 'small'"),
        (Bundle.read(tiny_bundle), "small", "expected one of: full.*fewstep calibrate decoder"),
    ):
        with pytest.raises(RequestError, match=words):
            planned_decode(bundle, decoder=name)


def test_the_weights_are_kept_in_a_file(made: Made) -> None:
    kept = load_decoder(made.distilled.weights)
    assert (kept.name, kept.info) == ("small", made.distilled.info)
    with Generator.open(made.bundle, threads=1) as generator:
        info = generator.engines["decoder-small"].inputs
    (tensor,) = info
    assert kept.network.shape.example.dtype == getattr(torch, info[tensor].dtype)


def test_a_name_is_taken_once(made: Made) -> None:
    with pytest.raises(CalibrationError, match="has a decoder 'small' already: pass --force"):
        distill(made.options)


# --- what goes wrong


def _tiny(path: Path, **changes: Any) -> DecoderOptions:
    return _options(path, images=2, held_out=1, updates=2, batch=2, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"smaller": 1.0}, "smaller must be above 1, got 1"),
        ({"smaller": 1e5}, "too small to be made smaller: no student has at most 57 operations"),
        ({"learning_rate": float("nan")}, "learning_rate must be in 0 … 1, got nan"),
        ({"name": "full"}, "full is the decoder of the bundle's tokenizer"),
        ({"name": "Sm all"}, "name.*got 'Sm all'"),
    ],
)
def test_bad_options_end_before_the_work(
    bundle_copy: Path, changes: dict[str, Any], words: str
) -> None:
    before = _files(bundle_copy)
    with pytest.raises(CalibrationError, match=words):
        distill(replace(_tiny(bundle_copy), **changes))
    assert _files(bundle_copy) == before
    assert sorted(bundle_copy.parent.iterdir()) == [bundle_copy]


def test_tokens_that_are_no_map_are_refused(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.runtime.families.masked import FAMILY

    whole = type(FAMILY).preview

    def in_a_row(self: Any, *arguments: Any) -> Preview:
        found = whole(self, *arguments)
        return replace(found, undecided=found.undecided.reshape(-1, 1, 16))

    monkeypatch.setattr(type(FAMILY), "preview", in_a_row)
    with pytest.raises(CalibrationError, match="reads 1 × 16 tokens, which are no map of an image"):
        distill(_tiny(bundle_copy))


def test_an_interruption_leaves_the_bundle_as_it_was(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _files(bundle_copy)

    def interrupted(what: str, done: float) -> None:
        if what == "training the decoder":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(_tiny(bundle_copy), progress=interrupted)
    assert _files(bundle_copy) == before
    assert sorted(bundle_copy.parent.iterdir()) == [bundle_copy]


def test_force_replaces_a_decoder_and_a_full_disk_none(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if made.kind != "masked":
        pytest.skip("one family will do")
    path = Path(shutil.copytree(made.options.bundle, tmp_path / "copy"))
    before, write, options = _files(path), Path.write_bytes, _tiny(path, force=True)

    def full(file: Path, content: bytes) -> int:
        if file.name.startswith(".golden") and file.parent == path:
            write(file, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match="No space left on device.*the decoder is kept in"):
            distill(options)
    assert _files(path) == before
    kept = load_decoder(options.weights_file)
    assert (kept.name, kept.info.updates) == ("small", options.updates)
    again = distill(replace(options, seed=5))
    changed = Bundle.read(path)
    assert changed.manifest.model.decoders == {"small": again.info}
    assert changed.graph_sha256("decoder-small") != made.bundle.graph_sha256("decoder-small")
    assert changed.damage() == {}
    assert len([*path.glob("decoder-small*")]) == len(changed.precisions)
    with Generator.open(changed, threads=1) as generator:
        assert verify(generator).passed
