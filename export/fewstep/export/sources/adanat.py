"""AdaNAT: a U-ViT, the MaskGIT tokenizer, and the policy network that sets every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewstep.export.source import IMAGE_ENCODER, Exportable, Option
from fewstep.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from fewstep.export.config import ExportConfig


@dataclass(frozen=True)
class UViTSource:
    """Files of the AdaNAT repository.

    ``needs_policy``: whether they make no bundle without one. ``at_least_one``: whether every step
    of the form decides at least one token. ``adagen``: whether policies are AdaGen's.
    """

    name: str
    summary: str
    options: tuple[Option, ...]
    needs_policy: bool
    at_least_one: bool
    adagen: bool = False
    kind: str = "masked"

    def load(self, given: Mapping[str, Any], config: ExportConfig) -> Exportable:
        """Read the models and check that they belong together."""
        policy, untrained = "policy" in given, "untrained_policy" in given
        from fewstep.export.policies import check_given

        check_given(given.get("policy"), untrained, given.get("tuned_policy", ()))
        if self.needs_policy and not (policy or untrained):
            raise CheckpointError(
                f"{self.name} needs a policy checkpoint (--policy), or --untrained-policy; what "
                "fewstep calibrate policy wrote goes with it: --untrained-policy --tuned-policy "
                "FILE"
            )
        from fewstep.export.masked import Checkpoints, Recipe, load

        return load(
            Checkpoints(**given),
            config,
            at_least_one=self.at_least_one,
            recipe=Recipe() if self.adagen else None,
        )


FILES = (
    Option("transformer", "Transformer checkpoint.", required=True),
    Option("tokenizer", "VQGAN tokenizer checkpoint.", required=True),
)
POLICY = Option("policy", "Policy checkpoint.")
MORE = (
    Option(
        "untrained_policy",
        "A policy network as AdaNAT initialises it. It follows the heuristic schedule until "
        "fewstep calibrate policy tunes it.",
        "flag",
    ),
    Option(
        "tuned_policy",
        "What calibrate policy wrote; repeat for more, the newest last.",
        "files",
    ),
    Option(
        "text_encoder",
        "Folder of the text encoder and its tokenizer, as transformers saves them "
        "(CLIP-ViT-bigG-14-laion2B-39B-b160k), or of a pipeline that has them.",
        "folder",
    ),
    Option(
        "unconditional_text",
        ".npy with the text states of the empty text; not needed with --text-encoder.",
    ),
    Option(
        "pixel_range",
        "Pixel values that the tokenizer was trained on, LOW:HIGH, such as -1:1. [0:1]",
        "text",
    ),
    Option(
        "cached_context",
        "A transformer that can compute some positions beside others, whose keys and values are "
        "cached, for --local-steps.",
        "flag",
    ),
    IMAGE_ENCODER,
)
SOURCE = UViTSource(
    "adanat",
    "AdaNAT: a masked token transformer with a policy network, trained or to be tuned.",
    (*FILES, POLICY, *MORE),
    needs_policy=True,
    at_least_one=False,
)
