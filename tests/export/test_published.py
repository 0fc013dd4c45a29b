"""The list of published models against forms and layouts; where their files are found."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from fewstep.export import hub, presets, published
from fewstep.export.imagenet import class_names
from fewstep.export.models.amused_vq import VQModel
from fewstep.export.models.clip_text import CLIPTextModelWithProjection
from fewstep.export.models.uvit2d import UVit2DModel
from fewstep.export.parts import part_of
from fewstep.export.published import PublishedFile, PublishedModel, check, sources_of
from fewstep.export.source import sources
from fewstep.runtime.errors import CheckpointError

_DATA = Path(__file__).parents[1] / "data"
_TABLES = [_DATA / f"{name}.json.gz" for name in ("ckpt_layouts", "ckpt_layouts_new")]
_MODELS = published.published()
_OF_FILES = {name: each for name, each in _MODELS.items() if each.form != "amused"}
_BESIDE: Any = (VQModel, CLIPTextModelWithProjection)


_BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")
"""Of VAR: no parameters."""


def _numbers(table: str, without: tuple[str, ...] = ()) -> int:
    """Numbers in the tensors of a checkpoint, but for those whose keys end so."""
    keys: dict[str, Any] = {}
    for path in _TABLES:
        with gzip.open(path) as file:
            keys |= json.load(file).get(table, {}).get("keys", {})
    return sum(math.prod(shape) for key, (shape, _) in keys.items() if not key.endswith(without))


@pytest.mark.parametrize("model", _MODELS.values(), ids=_MODELS)
def test_every_model_gives_its_form_what_it_needs(model: PublishedModel) -> None:
    source = sources()[model.form]
    options = {option.name for option in source.options if option.kind in ("file", "folder")}
    required = {option.name for option in source.options if option.required}
    assert required <= model.files.keys() <= options
    assert model.name not in sources()
    for file in model.files.values():
        assert file.hub or (file.page or "").startswith("https://")
        if file.hub:
            assert hub.parse(file.hub).path.rpartition("/")[2] in file.names


@pytest.mark.parametrize("size", [256, 512])
def test_sizes_of_amused_are_those_of_its_networks(size: int) -> None:
    """The tokenizer and the text encoder are the same in both."""
    transformers = {each.name: each.arguments for each in part_of(UVit2DModel).sizes}
    made = presets.build(UVit2DModel, transformers[f"aMUSEd {size}×{size}"], "transformer")
    parts = [made, *(presets.build(k, part_of(k).sizes[0].arguments, "") for k in _BESIDE)]
    counts = [sum(each.numel() for each in part.parameters()) for part in parts]
    model = _MODELS[f"amused-{size}"]
    assert model.parameters == counts[0]
    assert model.files["folder"].megabytes == pytest.approx(4 * sum(counts) / 1e6, abs=1)


@pytest.mark.parametrize("model", _OF_FILES.values(), ids=_OF_FILES)
def test_sizes_are_those_of_the_published_layouts(model: PublishedModel) -> None:
    tables = {name: file.names[0] for name, file in model.files.items()}
    if model.form == "var":
        tables["transformer"] += " (512)" if "d36" in model.name else ""
        tables |= {n: f"adagen {table}" for n, table in tables.items() if n == "policy"}
    elif model.form == "mar":
        tables["transformer"] = tables["transformer"].replace("/", " ")
    elif model.form in ("halton", "maskgit-torch"):
        pass
    elif model.form == "titok":
        tables["transformer"] += " (UViT)" if "s-128" in model.name else " (ViT)"
    else:
        cc3m = "cc3m" in model.name
        tables["transformer"] = "adanat_cc3m nnet_ema" if cc3m else "adanat_in256_L nnet_ema"
        tables = {name: tables[name] for name in ("transformer", "tokenizer")}
    sizes = {name: _numbers(table) for name, table in tables.items()}
    twice = ("head.weight",) if model.form == "halton" else ()  # tied to the embedding
    assert model.parameters == _numbers(tables["transformer"], (*_BUFFERS, *twice))
    for name, count in sizes.items():
        assert model.files[name].megabytes == pytest.approx(4 * count / 1e6, abs=1)


def _model(**files: dict[str, Any]) -> PublishedModel:
    return PublishedModel(
        name="tiny",
        form="adanat",
        summary="Tiny",
        page="https://example.org",
        files={name: PublishedFile.model_validate(file) for name, file in files.items()},
    )


_HUB = "hf://someone/model/net.pth"


def test_files_in_the_folder_come_before_the_hub(tmp_path: Path) -> None:
    model = _model(
        transformer={"names": ["net.pth"], "hub": _HUB}, policy={"names": ["ckpt_*.pth"]}
    )
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "ckpt_500.pth").write_text("")
    assert sources_of(model, tmp_path, {}) == {
        "transformer": _HUB,
        "policy": tmp_path / "deep" / "er" / "ckpt_500.pth",
    }
    (tmp_path / "deep" / "net.pth").write_text("")
    assert sources_of(model, tmp_path, {})["transformer"] == tmp_path / "deep" / "net.pth"
    (tmp_path / "net.pth").write_text("")
    assert sources_of(model, tmp_path, {})["transformer"] == tmp_path / "net.pth"
    assert sources_of(model, None, {"policy": "mine.pth"}) == {"transformer": _HUB}


def test_a_model_may_be_a_folder(tmp_path: Path) -> None:
    model = _MODELS["amused-256"]
    (tmp_path / "models" / "amused-256").mkdir(parents=True)
    found = {"folder": tmp_path / "models" / "amused-256"}
    assert sources_of(model, tmp_path, {}) == sources_of(model, found["folder"], {}) == found
    with pytest.raises(CheckpointError, match="needs amused-256 .*the whole folder: hf download"):
        sources_of(model, None, {})


def test_what_was_found_stands_in_for_another_file(tmp_path: Path) -> None:
    """A text encoder for the states of the empty text."""
    model = _MODELS["adanat-cc3m"]
    for name in ("nnet_ema.pth", "vqgan_jax_strongaug.ckpt", "ckpt_1.pth"):
        (tmp_path / name).write_text("")
    with pytest.raises(CheckpointError, match=r"adanat-cc3m needs empty_context\.npy"):
        sources_of(model, tmp_path, {})
    (tmp_path / "CLIP-ViT-bigG-14-laion2B-39B-b160k").mkdir()
    assert "text_encoder" in sources_of(model, tmp_path, {})


def test_a_file_may_be_known_by_its_folder(tmp_path: Path) -> None:
    """All of MAR's transformers have one name, in folders of theirs."""
    model = _model(transformer={"names": ["mar_base/checkpoint-last.pth"]})
    (tmp_path / "mar" / "mar_large").mkdir(parents=True)
    (tmp_path / "mar" / "mar_large" / "checkpoint-last.pth").write_text("")
    (tmp_path / "checkpoint-last.pth").write_text("")
    with pytest.raises(CheckpointError, match="needs mar_base/checkpoint-last.pth"):
        sources_of(model, tmp_path, {})
    path = tmp_path / "mar" / "mar_base" / "checkpoint-last.pth"
    path.parent.mkdir()
    path.write_text("")
    for folder in (tmp_path, tmp_path / "mar"):
        assert sources_of(model, folder, {}) == {"transformer": path}


def test_what_is_absent_is_said_with_its_page(tmp_path: Path) -> None:
    model = _model(
        transformer={"names": ["net.pth"], "page": "https://drive.example.org/net"},
        policy={"names": ["ckpt_*.pth"], "unless": "untrained_policy"},
        unconditional_text={"names": ["empty.npy"], "required": False},
    )
    with pytest.raises(CheckpointError) as raised:
        sources_of(model, None, {})
    for part in ("net.pth (https://drive.example.org/net); ckpt_*.pth", "--from FOLDER"):
        assert part in str(raised.value)
    assert "empty.npy" not in str(raised.value)
    with pytest.raises(CheckpointError, match=f"{tmp_path} does not hold them"):
        sources_of(model, tmp_path, {})
    with pytest.raises(CheckpointError, match="is no folder"):
        sources_of(model, tmp_path / "absent", {})
    (tmp_path / "net.pth").write_text("")
    found = sources_of(model, tmp_path, {"untrained_policy": True})
    assert found == {"transformer": tmp_path / "net.pth"}


def test_several_files_of_a_name_are_not_guessed_at(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.pth").write_text("")
    with pytest.raises(CheckpointError, match="several files .* pass --transformer"):
        sources_of(_model(transformer={"names": ["net.pth"]}), tmp_path, {})


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    model = _model(transformer={"names": ["net.pth"], "sha256": digest})
    check(model, {"transformer": path})
    path.write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match=f"is not {digest}"):
        check(model, {"transformer": path})


def test_a_damaged_list_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "models.json"
    monkeypatch.setattr(published, "DATA", path)
    for content in ("", '{"models": [{"name": "x"}]}'):
        path.write_text(content)
        with pytest.raises(CheckpointError, match="no list of published models"):
            published.published()


def test_imagenet_classes_are_in_the_order_of_ilsvrc_2012() -> None:
    """Checked against torchvision's list once; here by classes that everybody knows the ids of."""
    names = class_names()
    assert len(names) == 1000
    known = {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 207: "golden retriever"}
    known |= {134: "crane", 517: "crane", 281: "tabby, tabby cat", 474: "cardigan"}
    known |= {638: "maillot", 639: "maillot, tank suit", 980: "volcano"}
    known |= {999: "toilet tissue, toilet paper, bathroom tissue"}
    assert {index: names[index] for index in known} == known
    repeated = {name for name in names if names.count(name) > 1}
    assert repeated == {"crane"}
    assert not [name for name in names if name != name.strip() or "\t" in name]


def test_imagenet_ids_ascend_as_in_the_data_set() -> None:
    """ILSVRC 2012 numbers its classes in the order of their WordNet ids."""
    path = Path(published.__file__).with_name("imagenet_classes.txt")
    lines = path.read_text().splitlines()
    ids = [line[:9] for line in lines if not line.startswith("#")]
    assert ids == sorted(set(ids))
    assert (ids[0], ids[134], ids[517], ids[-1]) == (
        "n01440764",
        "n02012849",
        "n03126707",
        "n15075141",
    )
    assert any("WordNet" in line and "Princeton" in line for line in lines if line[0] == "#")
