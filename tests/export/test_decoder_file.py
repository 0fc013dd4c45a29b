"""Files of small decoders: what an export makes of them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.export.config import read_config
from fewstep.export.decoder_file import DistilledDecoder, load_decoder, save_decoder, with_decoder
from fewstep.export.models.small_decoder import DecoderShape, SmallDecoder
from fewstep.export.source import Exportable, sources
from fewstep.runtime.decoders import DecoderInfo
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.files import sha256


def _info(**changes: Any) -> DecoderInfo:
    known = DecoderInfo(
        created="2026-01-01T00:00:00+00:00",
        command="fewstep calibrate decoder bundle",
        tools={"torch": "2"},
        full_sha256="0" * 64,
        rollouts=10,
        settings={"steps": 4},
        seed=0,
        updates=100,
        held_out=5,
        psnr_db=30.0,
        flops=100,
        full_flops=900,
    )
    return known.model_copy(update=changes)


def _written(path: Path, *, codes: int = 24, factor: int = 2, **changes: Any) -> DistilledDecoder:
    torch.manual_seed(0)
    shape = DecoderShape(codes=codes, channels=6, grid=(4, 4), factor=factor, width=3)
    network = SmallDecoder(shape)
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    decoder = DistilledDecoder("small", network, _info(**changes))
    save_decoder(path, decoder)
    return decoder


@pytest.fixture(scope="module")
def exportable(tiny_checkpoints: dict[str, Any]) -> Exportable:
    """The tiny model, read and not exported."""
    given = {name: value for name, value in tiny_checkpoints.items() if name != "config"}
    return sources()["adanat"].load(given, read_config(tiny_checkpoints["config"]))


def test_an_export_has_the_decoder_of_the_file(exportable: Exportable, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    tokenizer = sha256(exportable.checkpoints["tokenizer"])
    decoder = _written(path, tokenizer_sha256=tokenizer)
    found = with_decoder(exportable, path)
    assert found.model.decoders == {"small": decoder.info}
    assert ("decoder-small", "tokens") in found.model.tensor_shapes()
    assert found.checkpoints["small_decoder"] == path
    graph = found.graphs["decoder-small"]
    (tokens,) = graph.inputs.values()
    assert torch.equal(graph.module(tokens), decoder.network(tokens))
    assert exportable.model.decoders == {}


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"tokenizer_sha256": "1" * 64}, "from the decoder of another tokenizer than .*vqgan"),
        ({"codes": 2}, "does not draw what the decoder of this model reads"),
        ({"factor": 4}, "does not draw what the decoder of this model reads"),
    ],
)
def test_a_decoder_of_another_model_is_refused(
    exportable: Exportable, tmp_path: Path, made: dict[str, Any], words: str
) -> None:
    _written(tmp_path / "small.safetensors", **made)
    with pytest.raises(CheckpointError, match=words):
        with_decoder(exportable, tmp_path / "small.safetensors")


def test_what_is_no_decoder_is_refused(
    exportable: Exportable, tmp_path: Path, tiny_checkpoints: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match="is no small decoder; expected a file that fewstep"):
        load_decoder(tiny_checkpoints["tokenizer"])
    with pytest.raises(CheckpointError, match=r"absent\.safetensors: no such file"):
        load_decoder(tmp_path / "absent.safetensors")
    path = tmp_path / "small.safetensors"
    _written(path)
    without = {name: each for name, each in exportable.graphs.items() if name != "decoder"}
    with pytest.raises(CheckpointError, match="models of masked have one decoder alone"):
        with_decoder(replace(exportable, graphs=without), path)
