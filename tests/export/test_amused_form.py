"""aMUSEd from a folder of diffusers to a bundle: what the manifest says, that the graphs are those
of PyTorch, and folders that are refused.

The decode itself is compared with diffusers in ``tests/test_official.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.masked import masked_model
from tests.tiny_amused import TEXT, VOCABULARY, write_amused, write_tokenizer
from tokenizers import Tokenizer

from fewstep.export import presets
from fewstep.export.flow import export
from fewstep.export.models.clip_text import CLIPTextModelWithProjection
from fewstep.export.models.uvit2d import packed
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import TextCondition
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import run_once
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_amused(tmp_path_factory.mktemp("amused") / "amused-tiny")


def _states(pipeline: Path, text: str) -> torch.Tensor:
    """What the transformer reads of a text, without any graph: ``[1, 8, 12]``."""
    tokenizer = Tokenizer.from_str((pipeline.parent / "tokenizer.json").read_text())
    ids = tokenizer.encode(text).ids
    padded = torch.tensor([ids + [0] * (7 - len(ids))])
    model, _ = presets.read(CLIPTextModelWithProjection, pipeline / "text_encoder", TEXT)
    with torch.no_grad():
        vector, before, _ = model(padded)
    return packed(vector, before)


def _exported(pipeline: Path, folder: Path, **config: Any) -> Bundle:
    (folder / "config.json").write_text(json.dumps(config))
    given = {"folder": pipeline, "config": folder / "config.json"}
    return export("amused", given, folder / "bundle")


def test_what_the_manifest_says(pipeline: Path, tmp_path: Path, quick: None) -> None:
    bundle = _exported(pipeline, tmp_path)
    info, condition = masked_model(bundle), bundle.manifest.model.condition
    assert (info.grid, info.codebook_size, info.mask_token) == ((4, 4), 24, 27)
    assert (info.image_size, info.at_least_one) == ((8, 8), True)
    defaults = info.defaults
    assert (defaults.steps, defaults.schedule, defaults.guidance) == (12, "cosine", (9, 9))
    assert defaults.masking_temperature == (2, 0)
    assert isinstance(condition, TextCondition)
    assert (condition.length, condition.width) == (8, 12)
    assert condition.encoder is not None
    assert (condition.encoder.tokens, condition.encoder.pad_id) == (7, 0)
    graph = bundle.manifest.graphs["text_encoder"]
    assert graph.inputs["ids"].shape == ("batch", 7)
    assert graph.outputs["text"].shape == ("batch", 8, 12)
    assert bundle.manifest.name == "amused-tiny"
    read = bundle.manifest.provenance.checkpoints
    assert {"transformer", "tokenizer", "text_encoder", "text_encoder/vocab"} <= read.keys()
    assert read["scheduler/scheduler_config"].file == "scheduler_config.json"


def test_the_empty_text_is_read_by_the_encoder(pipeline: Path, tmp_path: Path, quick: None) -> None:
    bundle = _exported(pipeline, tmp_path)
    shutil.copy(bundle.path / "tokenizer.json", pipeline.parent)
    expected = _states(pipeline, "")[0].numpy()
    found = bundle.arrays("unconditional.npz")["text"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_folder_and_the_configuration_say_how_to_sample(tmp_path: Path, quick: None) -> None:
    folder = write_amused(
        tmp_path / "p",
        transformer={"downsample": True, "upsample": True, "sample_size": 6},
        vqvae={"mid_block_add_attention": True, "norm_num_groups": 2},
        scheduler={"masking_schedule": "linear", "mask_token_id": 24},
    )
    bundle = _exported(folder, tmp_path, defaults={"steps": 5}, name="mine")
    info = masked_model(bundle)
    assert (info.grid, info.mask_token, info.image_size) == ((6, 6), 24, (12, 12))
    assert (info.defaults.schedule, info.defaults.steps) == ("linear", 5)
    assert bundle.manifest.name == "mine"


def test_weights_of_half_precision_may_lie_beside(
    pipeline: Path, tmp_path: Path, quick: None
) -> None:
    folder = shutil.copytree(pipeline, tmp_path / "p")
    for name, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / name / f"{stem}.fp16.safetensors").write_text("not read")
    assert _exported(folder, tmp_path).manifest.graphs.keys() == {
        "transformer",
        "decoder",
        "text_encoder",
    }


@pytest.mark.slow
def test_graphs_are_those_of_pytorch(pipeline: Path, tmp_path: Path) -> None:
    """Golden rollouts come back, and the encoder gives the states of texts."""
    bundle = _exported(pipeline, tmp_path)
    with Generator.open(bundle, threads=1) as generator:
        report = verify(generator)
    assert report.checks
    assert all(check.passed for check in report.checks)
    shutil.copy(bundle.path / "tokenizer.json", pipeline.parent)
    tokenizer = Tokenizer.from_file(str(bundle.path / "tokenizer.json"))
    info = bundle.manifest.graphs["text_encoder"]
    engine = OnnxRuntimeEngine("text_encoder", bundle.path / info.file, info)
    for text in ("", "a cat", "the cat and the cat and the cat"):
        ids = tokenizer.encode(text).ids
        fed = {"ids": np.array([ids + [0] * (7 - len(ids))], np.int32)}
        found = run_once(CpuDevice(), engine, fed)["text"]
        np.testing.assert_allclose(found, _states(pipeline, text).numpy(), rtol=0, atol=1e-4)
    engine.close()


# --- folders that are refused


def _says(file: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        said = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(said | changes))

    return change


def _lacks(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def _larger_vocabulary(folder: Path) -> None:
    merges = [("d", "o"), ("do", "g</w>"), ("a", "n"), ("an", "d</w>")]
    write_tokenizer(folder / "tokenizer", merges)


_OTHER = {"_class_name": "FluxTransformer2DModel"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_says("model_index.json", **_OTHER), "model_index.json: expected _class_name AmusedPipel"),
        (_says("transformer/config.json", **_OTHER), "UVit2DModel, got FluxTransformer2DModel"),
        (_says("vqvae/config.json", **_OTHER), "vqvae/config.json: expected _class_name VQModel"),
        (_says("scheduler/scheduler_config.json", **_OTHER), "_class_name AmusedScheduler, got"),
        (
            _says("text_encoder/config.json", architectures=["T5EncoderModel"]),
            "architectures CLIPTextModelWithProjection or CLIPModel, got T5EncoderModel",
        ),
        (
            _says("text_encoder/config.json", architectures=["CLIPTextModel"]),
            "architectures CLIPTextModelWithProjection or CLIPModel, got CLIPTextModel",
        ),
        (_lacks("transformer/config.json"), "transformer/config.json: no such file"),
        (_lacks("vqvae/diffusion_pytorch_model.safetensors"), "vqvae holds no checkpoint"),
        (_lacks("text_encoder/model.safetensors"), "text_encoder holds no checkpoint"),
        (_lacks("tokenizer/merges.txt"), "tokenizer holds no tokenizer; expected tokenizer.json"),
        (_larger_vocabulary, f"go up to 517, and the encoder knows 0 … {VOCABULARY - 1}"),
        (
            _says("text_encoder/config.json", eos_token_id=3),
            "its texts end with 515, and the encoder reads them at eos_token_id 3",
        ),
        (_says("scheduler/scheduler_config.json", mask_token_id=28), "must be 24 … 27, .* got 28"),
        (_says("scheduler/scheduler_config.json", mask_token_id=7), "must be 24 … 27, .* got 7"),
        (_says("scheduler/scheduler_config.json", mask_token_id=None), "got None"),
        (
            _says("scheduler/scheduler_config.json", masking_schedule="sine"),
            "unknown masking_schedule 'sine'; expected one of: cosine, linear",
        ),
        (_says("transformer/config.json", sample_size="4"), "sample_size must be a whole number"),
        (_says("transformer/config.json", num_hidden_layers=2), "does not fit UVit2DModel"),
        (_says("vqvae/config.json", norm_type="spatial"), "norm_type must be group, got spatial"),
    ],
)
def test_folders_that_do_not_fit_are_told_in_one_line(
    change: Change, words: str, pipeline: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pipeline, tmp_path / "p")
    change(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        _exported(folder, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "p"]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"vqvae": {"num_vq_embeddings": 32}}, "codebook size 24 but the tokenizer's is 32"),
        ({"text_encoder": {"hidden_size": 16}}, "text width 8 but the text encoder's is 16"),
        ({"text_encoder": {"projection_dim": 9}}, "pooled text width 12 but the text encoder's"),
        (
            {"transformer": {"downsample": True, "upsample": True, "sample_size": 5}},
            r"the sides of the grid must be even, got \[5, 5\]",
        ),
    ],
)
def test_parts_of_different_models_are_refused(
    parts: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=words):
        _exported(write_amused(tmp_path / "p", **parts), tmp_path)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"transformer": {"sample_size": 8}}, "transformer in --config is not for aMUSEd, whose"),
        ({"class_names": ["a"]}, "class_names in --config is for class-conditional models"),
        ({"unconditional": 3}, "unconditional in --config is for class-conditional models"),
        ({"policy": {"hidden_size": 8}}, "policy in --config is not for aMUSEd; leave it out"),
        ({"defaults": {"steps": 17}}, "steps must be 1 … 16"),
        ({"defaults": {"softmax_temperature": 2}}, "softmax_temperature is for models whose"),
    ],
)
def test_configurations_that_do_not_fit(
    said: dict[str, Any], words: str, pipeline: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=words):
        _exported(pipeline, tmp_path, **said)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("of", "placed", "words"),
    [
        (
            "vqvae",
            "transformer",
            "is an aMUSEd tokenizer (VQ), not an aMUSEd transformer; pass it as vqvae in",
        ),
        (
            "transformer",
            "vqvae",
            "is an aMUSEd transformer, not an aMUSEd tokenizer (VQ); pass it as transformer in",
        ),
        (
            "transformer",
            "text_encoder",
            "is an aMUSEd transformer, not a CLIP text encoder; pass it as transformer in",
        ),
    ],
)
def test_weights_in_the_place_of_others(
    of: str, placed: str, words: str, pipeline: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pipeline, tmp_path / "p")
    (weights,) = (pipeline / of).glob("*.safetensors")
    (target,) = (folder / placed).glob("*.safetensors")
    shutil.copy(weights, target)
    with pytest.raises(CheckpointError) as caught:
        _exported(folder, tmp_path)
    assert f"{words} the folder of the pipeline" in str(caught.value)


def test_a_folder_without_the_parts_of_a_pipeline(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    with pytest.raises(CheckpointError, match="lacks transformer, vqvae, .*, scheduler; expected"):
        _exported(tmp_path / "p", tmp_path)


def test_a_file_is_no_folder(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder; expected that of a pipeline of diff"):
        _exported(pipeline / "model_index.json", tmp_path)
