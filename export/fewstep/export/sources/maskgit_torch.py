"""Google's MaskGIT, as maskgit-torch publishes its weights for PyTorch."""

from __future__ import annotations

from fewstep.export.source import IMAGE_ENCODER, FilesSource, Option

SOURCE = FilesSource(
    "maskgit-torch",
    "masked",
    "maskgit_torch",
    "Google's MaskGIT, in the files of maskgit-torch: 256×256 and 512×512, without guidance.",
    (
        Option("transformer", "Transformer checkpoint (maskgit_imagenet256.ckpt).", required=True),
        Option("tokenizer", "Tokenizer checkpoint (tokenizer_imagenet256.ckpt).", required=True),
        IMAGE_ENCODER,
    ),
)
