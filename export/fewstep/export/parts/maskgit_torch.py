"""The networks of Google's MaskGIT, in the sizes that hmorimitsu/maskgit-torch publishes them.

Files hold ``state_dict`` and nothing beside. The number of heads leaves no trace in the shapes: it
is 16 in ``maskgit/configs/maskgit_class_cond_config.py``, where the notebook that converted the
weights says 8. The tokenizers of both sizes of images differ in their values alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from fewstep.export.models.maskgit_tokenizer import VQVAE
from fewstep.export.models.maskgit_transformer import BidirectionalTransformer
from fewstep.export.parts import Kind, Part, Preset
from fewstep.export.wrappers import Wanted

PARTS: Mapping[Kind, Part] = {
    BidirectionalTransformer: Part(
        "MaskGIT transformer (maskgit-torch)",
        "--transformer",
        sizes=(
            Preset("MaskGIT, ImageNet 256×256", {"num_image_tokens": 257}),
            Preset("MaskGIT, ImageNet 512×512", {"num_image_tokens": 1025}),
        ),
        form="maskgit-torch",
        settings=("num_image_tokens", "num_codebook_vectors", "dim", "hidden_dim", "num_heads")
        + ("n_layers", "codebook_size"),
    ),
    VQVAE: Part(
        "MaskGIT tokenizer (maskgit-torch)",
        "--tokenizer",
        sizes=(Preset("MaskGIT VQGAN f16, 1024 codes, 256×256 or 512×512", {}),),
        form="maskgit-torch",
        settings=("codebook_size", "embedding_dim", "filters", "channel_multipliers")
        + ("num_res_blocks", "conv_downsample", "norm_type", "activation_fn", "quantizer"),
        settings_beside="channel_multipliers",
        rules=Wanted(frozenset(), unused=("encoder.",)),
    ),
}
"""By the class of the network."""
