"""A small decoder on the GPU: requests choose it, and images are those of the CPU.

Its graph is the bundle's own under another name: what is tested is the program.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.decoders import DecoderInfo
from fewstep.runtime.generator import Generator
from fewstep.runtime.result import Result

Alike = Callable[[Result, Result], None]
Open = Callable[..., Generator]


def _with_second(path: Path) -> Path:
    """The bundle with its decoder again, as ``decoder-small``."""
    bundle = Bundle.read(path)
    fields, info = bundle.manifest.model_dump(), _info(bundle)
    fields["model"]["decoders"] = {"small": info.model_dump()}
    for graphs in (fields["graphs"], *fields["variants"].values()):
        graphs["decoder-small"] = graphs["decoder"]
    changes = {name: fields[name] for name in ("model", "graphs", "variants")}
    return bundle.update({}, **changes).path


def _info(bundle: Bundle) -> DecoderInfo:
    return DecoderInfo(
        created="",
        command="pytest",
        tools={},
        full_sha256=bundle.graph_sha256("decoder"),
        rollouts=1,
        settings={},
        seed=0,
        updates=1,
        held_out=1,
        psnr_db=120.0,
        flops=1,
        full_flops=1,
    )


def test_images_of_the_small_decoder_are_those_of_the_cpu(
    open_cuda: Open, tiny_cuda_bundle: Path, tmp_path: Path, assert_alike: Alike
) -> None:
    path = _with_second(Path(shutil.copytree(tiny_cuda_bundle, tmp_path / "bundle")))
    with (
        open_cuda(path, max_batch=2) as on_cuda,
        Generator.open(path, device="cpu", threads=1, max_batch=2) as on_cpu,
    ):
        for decoder in ("small", "full", "small"):
            found, expected = (
                each.generate(class_ids=[0, 3, 4], steps=3, decoder=decoder)
                for each in (on_cuda, on_cpu)
            )
            assert_alike(found, expected)
            assert found.decoder == ("decoder" if decoder == "full" else "decoder-small")
            assert found.images.any()
