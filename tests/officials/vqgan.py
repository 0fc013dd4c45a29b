"""VQGANs: decoded grids of tokens, and token ids of images.

A bundle has decoders of square grids, clamped to 0 … 1; other grids, what is not clamped, and
encoders are those of the PyTorch class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from tests.officials.comparison import Comparison
from tests.officials.fixture import Fixture, Network, UnusableError
from tests.officials.replay import exported, run
from tests.officials.stand_ins import any_transformer, side_of

from fewstep.export import presets
from fewstep.export.models import VQModel
from fewstep.export.parts import part_of

Array = npt.NDArray[Any]


def knows(cfg: Mapping[str, Any]) -> bool:
    """Whether a recording is of such a tokenizer."""
    return "ddconfig" in cfg or {"conf", "num_embeddings"} <= cfg.keys()


def _arguments(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``VQModel``; 1d-tokenizer has other names for the same."""
    if "ddconfig" in cfg:
        return {key: cfg[key] for key in ("ddconfig", "n_embed", "embed_dim")}
    conf = cfg["conf"]
    ddconfig = {
        "z_channels": conf["z_channels"],
        "resolution": conf["resolution"],
        "in_channels": conf["num_channels"],
        "out_ch": conf["num_channels"],
        "ch": conf["hidden_channels"],
        "ch_mult": conf["channel_mult"],
        "num_res_blocks": conf["num_res_blocks"],
    }
    width = conf["z_channels"]
    return {"ddconfig": ddconfig, "n_embed": cfg["num_embeddings"], "embed_dim": width}


def replays(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """Decoded grids of tokens, by the bundle's decoder where they are square; ids of images."""
    network = Network(_arguments(fixture.cfg), fixture.under("sd/", "sd.tokenizer/"))
    model = _torch_tokenizer(network)
    images = {key: value for key, value in fixture.under("out/").items() if value.ndim == 4}
    for key, codes in fixture.under("in/").items():
        if codes.dtype.kind in "iu":
            square = (side_of(codes.shape[1]),) * 2 if codes.ndim == 2 else codes.shape[1:]
            sides = tuple(side * model.downsampling for side in square)
            of = {k: v for k, v in images.items() if v.shape == (len(codes), 3, *sides)}
            if not of:
                raise UnusableError(f"lacks the image of in/{key}")
            yield _decoded(network, model, key, codes.reshape(-1, *square), of, folder)
    for key, image in fixture.under("in/").items():
        if image.dtype.kind == "f" and hasattr(model, "encoder"):
            found = Comparison(f"{key} → ids (PyTorch)")
            with torch.no_grad():
                ids = model.encode(torch.from_numpy(image)).numpy()
            recorded = next(v for v in fixture.under("out/").values() if v.dtype.kind in "iu")
            found.ids("ids", ids, recorded.reshape(ids.shape))
            yield found


def _torch_tokenizer(network: Network) -> VQModel:
    """With its encoder, which no bundle has."""
    own, state = VQModel(**network.arguments).state_dict(), network.state
    other = part_of(VQModel).other_name
    renamed = {key: state[key] if key in state else state.get(other(key)) for key in own}
    tensors = {k: torch.from_numpy(v) for k, v in renamed.items() if v is not None}
    return presets.load(VQModel, tensors, Path("recorded"), network.arguments)


def _decoded(
    network: Network,
    model: VQModel,
    key: str,
    codes: Array,
    images: Mapping[str, Array],
    folder: Path,
) -> Comparison:
    height, width = codes.shape[1:]
    found = Comparison(f"{key} → {height}×{width} tokens")
    with torch.no_grad():
        raw = model.decode(torch.from_numpy(codes)).numpy()
    engine = _engine_image(network, codes, folder / key) if height == width else None
    for name, image in images.items():
        if "raw" in name:
            found.floats(f"{name} (PyTorch)", raw, image)
            image = image.clip(0, 1)
        if engine is not None:
            found.floats("image", engine, image)
        elif "raw" not in name:
            found.floats(f"{name} (PyTorch)", raw.clip(0, 1), image)
    return found


def _engine_image(network: Network, codes: Array, folder: Path) -> Array:
    """By the decoder of a bundle for grids of this side."""
    folder.mkdir()
    side, levels = codes.shape[1], dict(network.arguments["ddconfig"])
    levels["resolution"] = side * 2 ** (len(levels["ch_mult"]) - 1)
    transformer = any_transformer(side, network.arguments["n_embed"])
    files = {
        "transformer": transformer.save(folder / "nnet_ema.pth"),
        "tokenizer": network.save(folder / "vqgan.ckpt"),
    }
    config = {
        "transformer": transformer.arguments,
        "tokenizer": {**network.arguments, "ddconfig": levels},
    }
    with exported("maskgit", files, config, folder / "bundle") as generator:
        fed = {"tokens": codes.reshape(len(codes), -1)}
        return run(generator, "decoder", fed)["image"]
