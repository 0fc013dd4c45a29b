"""Networks in the place of those that a recording of a masked model lacks: random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from tests.officials.fixture import Network, UnusableError

from fewstep.export.models import UViT, VQModel


def stand_in(kind: Any, arguments: Mapping[str, Any]) -> Network:
    """A network of this class with random weights."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        state = kind(**arguments).state_dict()
    return Network(dict(arguments), {key: value.numpy() for key, value in state.items()})


def any_tokenizer(side: int, codes: int) -> Network:
    """A pixel a token."""
    levels = {"z_channels": 32, "resolution": side, "in_channels": 3, "out_ch": 3}
    blocks = {"ch": 32, "ch_mult": [1], "num_res_blocks": 1}
    return stand_in(VQModel, {"ddconfig": levels | blocks, "n_embed": codes, "embed_dim": 32})


def any_transformer(side: int, codes: int, width: int = 32) -> Network:
    sizes = {"img_size": side, "codebook_size": codes, "embed_dim": width}
    return stand_in(UViT, sizes | {"depth": 2, "num_heads": 1, "num_classes": 2})


def side_of(tokens: int) -> int:
    """The side of a square grid of so many tokens."""
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UnusableError(f"has {tokens} tokens, which are no square")
    return side
