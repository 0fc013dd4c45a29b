"""MAR's networks, in the sizes that the MAR repository publishes them."""

from __future__ import annotations

from collections.abc import Mapping

from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR
from fewstep.export.parts import Kind, Part, Preset
from fewstep.export.wrappers import Wanted


def _size(name: str, width: int, depth: int, heads: int, head: tuple[int, int]) -> Preset:
    arguments = {
        f"{part}_{what}": value
        for part in ("encoder", "decoder")
        for what, value in (("embed_dim", width), ("depth", depth), ("num_heads", heads))
    }
    blocks, head_width = head
    return Preset(
        f"MAR-{name}, ImageNet 256×256",
        {**arguments, "diffloss_d": blocks, "diffloss_w": head_width},
    )


PARTS: Mapping[Kind, Part] = {
    MAR: Part(
        "MAR transformer",
        "--transformer",
        sizes=(
            _size("B", 768, 12, 12, (6, 1024)),
            _size("L", 1024, 16, 16, (8, 1280)),
            _size("H", 1280, 20, 16, (12, 1536)),
        ),
        form="mar",
        settings=("vae_stride", "patch_size", "vae_embed_dim", "buffer_size", "diffloss_d")
        + ("diffloss_w", "img_size"),
    ),
    AutoencoderKL: Part(
        "KL autoencoder",
        "--tokenizer",
        sizes=(Preset("KL-16, 16 channels", {}),),
        form="mar",
        settings=("embed_dim", "ch_mult"),
        settings_beside="ch_mult",
        rules=Wanted(frozenset(), unused=("encoder.", "quant_conv.")),
    ),
}
"""By the class of the network."""
