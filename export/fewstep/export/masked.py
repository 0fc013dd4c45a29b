"""Masked token models of the AdaNAT repository: from their files to what is exported.

A transformer (U-ViT), a tokenizer (VQGAN) and, if the model has any, policy networks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fewstep.export import checkpoint, presets
from fewstep.export.adanat_text import text_encoder_of
from fewstep.export.autonat import PRESETS
from fewstep.export.conditions import (
    UNCONDITIONAL_FILE,
    condition_of,
    read_unconditional_text,
)
from fewstep.export.config import ExportConfig
from fewstep.export.layout import require_agreement
from fewstep.export.masked_graphs import LogitsOnly, WithCache, masked_graphs
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.policies import UNTRAINED_SEED, check_names, untrained_policy
from fewstep.export.policy_file import StoredPolicy, put_in_order, stored_policy
from fewstep.export.source import Exportable, Graph
from fewstep.export.text_encoder import Encoder, unconditional_file
from fewstep.export.tuned import TunedPolicy, load_tuned
from fewstep.runtime.condition import ClassCondition, TextCondition
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import CheckpointError, choose
from fewstep.runtime.families.masked.model import MaskedModel, MaskedPolicyInfo
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.policies import EXPORTED_POLICY, POLICY
from fewstep.runtime.records import found_wrong


@dataclass(frozen=True)
class Checkpoints:
    """The files to read.

    Args:
        transformer: U-ViT state dict.
        tokenizer: VQGAN state dict.
        policy: AdaNAT policy checkpoint.
        untrained_policy: make a policy network as AdaNAT initialises it in its place; by default
            with the residual, so that it follows the heuristic schedule until
            ``fewstep calibrate policy`` tunes it.
        tuned_policy: policies that ``fewstep calibrate policy`` wrote, oldest first.
        text_encoder: folder of the text encoder of a text-conditional model.
        unconditional_text: ``.npy`` with the text states of the empty text ``[L, D]``, for
            guidance in text-conditional models; those of the text encoder, if there is one.
        pixel_range: of the tokenizer, ``LOW:HIGH``; that of the configuration, or 0:1, if empty.
        cached_context: whether the transformer can compute some positions beside others, whose keys
            and values are cached.
        encoder: whether the bundle can edit pictures.
    """

    transformer: Path
    tokenizer: Path
    policy: Path | None = None
    untrained_policy: bool = False
    tuned_policy: Sequence[Path] = ()
    text_encoder: Path | None = None
    unconditional_text: Path | None = None
    pixel_range: str = ""
    cached_context: bool = False
    encoder: bool = False


@dataclass(frozen=True)
class Models:
    """Loaded models that belong together, in evaluation mode.

    ``policy`` is ``None`` for fixed schedules only; ``untrained``: nothing trained it.
    ``encoder``: of texts. ``unconditional_text``: states of the empty text ``[L, D]``, float32.
    ``notes``: what was removed from the files or preferred in them. ``stored``: what the policy's
    file says of itself. ``pixels``: the least and the largest pixel value that the tokenizer was
    trained on. ``cached_context``: as of :class:`Checkpoints`; ``editable``: its ``encoder``.
    """

    transformer: UViT
    tokenizer: VQModel
    policy: PolicyNet | None = None
    untrained: bool = False
    tuned: tuple[TunedPolicy, ...] = ()
    encoder: Encoder | None = None
    unconditional_text: Array | None = None
    notes: tuple[str, ...] = ()
    stored: StoredPolicy = StoredPolicy()
    pixels: tuple[float, float] = (0.0, 1.0)
    cached_context: bool = False
    editable: bool = False


@dataclass(frozen=True)
class Recipe:
    """How AdaGen trains policies of a masked model, which its files do not say.

    ``steps`` of a generation. The other fields are those of :class:`MaskedPolicyInfo`, as an action
    of zeros follows them.
    """

    steps: int = 16
    smoothing: float = 0.8
    guidance: float = 1.0
    masking_temperature: float = 1.0
    sampling_temperature: float = 1.0


def load(
    files: Checkpoints,
    config: ExportConfig,
    *,
    at_least_one: bool,
    recipe: Recipe | None = None,
) -> Exportable:
    """Read the files.

    Args:
        files: the checkpoints.
        config: contents of the ``--config`` file.
        at_least_one: whether the form decides a token at least in every step.
        recipe: of AdaGen's policies; ``None`` for AdaNAT's.

    Raises:
        CheckpointError: a file or the configuration does not fit.
    """
    if recipe is None:
        config.refuse("masked models but AdaGen's", "policy_schedule")
    else:
        recipe = _recipe(recipe, config)
    models = load_models(files, config)
    model, notes = describe(models, config, at_least_one=at_least_one, recipe=recipe)
    extra, read = dict[str, bytes](), checkpoint.named_files({**vars(files), "text_encoder": None})
    if models.encoder is not None:
        extra, read = (
            models.encoder.files(models.unconditional_text),
            read | models.encoder.checkpoints,
        )
    elif models.unconditional_text is not None:
        extra[UNCONDITIONAL_FILE] = unconditional_file(models.unconditional_text)
    return Exportable(
        files.transformer.stem,
        model,
        graphs(models, model),
        read,
        extra,
        (*models.notes, *notes),
    )


def load_models(files: Checkpoints, config: ExportConfig) -> Models:
    """Load models, and check that they belong together.

    Raises:
        CheckpointError: a file does not load, or the models do not fit each other.
    """
    # What needs no weights comes first: reading them takes long.
    config.refuse("masked models", "latent_scale")
    pixels = _pixel_range(files.pixel_range, config)
    config.settings(MaskedSettings())
    transformer, found = presets.read(UViT, files.transformer, config.transformer)
    notes, stored = _notes("transformer", found), StoredPolicy()
    encoder = text_encoder_of(files.text_encoder, transformer)
    notes += () if encoder is None else encoder.notes
    policy = None
    if files.untrained_policy:
        side = round(transformer.num_tokens**0.5)
        policy = untrained_policy(PolicyNet, transformer.embed_dim, side, config.policy)
    elif files.policy is not None:
        policy, found = presets.read(PolicyNet, files.policy, config.policy)
        notes, stored = notes + _notes("policy", found), stored_policy(found, files.policy)
        put_in_order(policy, stored.order)
    tokenizer, found = presets.read(VQModel, files.tokenizer, config.tokenizer, whole=files.encoder)
    notes += _notes("tokenizer", found)
    models = Models(
        transformer,
        tokenizer,
        policy,
        files.untrained_policy,
        tuple(load_tuned(path, "masked") for path in files.tuned_policy),
        encoder,
        read_unconditional_text(files.unconditional_text, transformer),
        notes,
        stored,
        pixels,
        files.cached_context,
        files.encoder,
    )
    _check_fit(models)
    return models


def _notes(name: str, found: checkpoint.Checkpoint) -> tuple[str, ...]:
    return tuple(f"{name}: {note}" for note in found.notes)


def _check_fit(models: Models) -> None:
    transformer, tokenizer, policy = models.transformer, models.tokenizer, models.policy
    check_names(models.tuned, (POLICY, EXPORTED_POLICY))
    side = round(transformer.num_tokens**0.5)
    codes = tokenizer.quantize.embedding.num_embeddings
    pairs = [
        ("codebook size", transformer.codebook_size, codes, "tokenizer"),
        ("token grid side", side, tokenizer.resolution // tokenizer.downsampling, "tokenizer"),
    ]
    networks: dict[str, nn.Module | None] = {"policy": policy}
    networks |= {each.name: each.network for each in models.tuned}
    for name, network in networks.items():
        if isinstance(network, PolicyNet):
            pairs += [
                ("feature width", transformer.embed_dim, network.in_channels, name),
                ("token grid side", side, network.grid_size, name),
                ("number of actions", 4, network.linear3.out_features, name),
            ]
    require_agreement(pairs)


def _recipe(recipe: Recipe, config: ExportConfig) -> Recipe:
    """The recipe, with what the configuration says of it."""
    config.refuse("AdaGen's policies", "policy_residual")
    given, known = config.policy_schedule or {}, [each.name for each in fields(Recipe)]
    for name in given:
        if name not in known:
            raise CheckpointError(choose("setting of policy_schedule", name, known))
    try:
        found = replace(recipe, **given)
        MaskedPolicyInfo(residual=True, **vars(found))
    except ValidationError as error:
        problems = found_wrong(error, "policy_schedule")
        raise CheckpointError(f"policy_schedule in --config: {problems}") from error
    return found


def describe(
    models: Models, config: ExportConfig, *, at_least_one: bool, recipe: Recipe | None = None
) -> tuple[MaskedModel, tuple[str, ...]]:
    """What the manifest says of loaded models, and what to say of that to the user.

    Raises:
        CheckpointError: class names or defaults of the configuration do not fit, or a policy
            has nothing to guide with.
    """
    transformer, side = models.transformer, round(models.transformer.num_tokens**0.5)
    condition, notes = condition_of(models.transformer, config, models.unconditional_text)
    if models.encoder is not None:
        condition = models.encoder.condition()
    if not condition.has_unconditional and (models.policy is not None or models.tuned):
        raise CheckpointError(_nothing_to_guide_with(condition))
    defaults = config.settings(MaskedSettings())
    if not condition.has_unconditional and "guidance" not in config.defaults:
        defaults = defaults.model_copy(update={"guidance": (0.0, 0.0)})
    steps = models.stored.steps if recipe is None else recipe.steps
    if steps is not None and "steps" not in config.defaults:
        if steps > models.transformer.num_tokens:
            raise CheckpointError(
                f"the policy was trained for {steps} steps, as "
                f"{'its file says (gen_steps)' if recipe is None else 'policy_schedule says'}, but "
                f"the transformer has {models.transformer.num_tokens} tokens: they do not fit"
            )
        defaults = defaults.model_copy(update={"steps": steps})
        notes += (f"the policy was trained for {steps} steps, the default of this bundle now",)
    if recipe is not None and "schedule" not in config.defaults:
        defaults = defaults.model_copy(update={"schedule": POLICY})
    model = MaskedModel(
        grid=(side, side),
        codebook_size=transformer.codebook_size,
        mask_token=transformer.codebook_size,
        feature_width=transformer.embed_dim,
        image_size=(models.tokenizer.resolution, models.tokenizer.resolution),
        condition=condition,
        policies=_policies(models, config, recipe),
        at_least_one=at_least_one,
        cached_blocks=transformer.num_blocks if models.cached_context else 0,
        presets={**_presets(models, config), **config.presets},
        editable=models.editable,
        defaults=defaults,
    )
    return model, notes


def _presets(models: Models, config: ExportConfig) -> dict[str, dict[str, Any]]:
    """Those that were searched for the published transformer of ImageNet.

    Their mask ratios decide several tokens in every step, so that it makes no difference whether
    the form asks for one at least.
    """
    published = config.transformer is None and models.transformer.class_conditional
    return PRESETS if published else {}


def _nothing_to_guide_with(condition: ClassCondition | TextCondition) -> str:
    if isinstance(condition, ClassCondition):
        return (
            "a policy always uses guidance, which needs a class id that stands for no class; say "
            'which in --config, such as {"unconditional": 1000}, or export without a policy'
        )
    return (
        "a policy always uses guidance, so a text-conditional model needs the states of the empty "
        "text too, of its text encoder (--text-encoder) or in a .npy array "
        f"[{condition.length}, {condition.width}] (--unconditional-text)"
    )


def _pixel_range(given: str, config: ExportConfig) -> tuple[float, float]:
    """The tokenizer's range, from the option, the configuration, or as in the published one."""
    try:
        low, high = map(float, given.split(":")) if given else (config.pixel_range or (0.0, 1.0))
    except ValueError:
        raise CheckpointError(f"--pixel-range must be LOW:HIGH, got {given}") from None
    if not (low < high and math.isfinite(high - low)):
        raise CheckpointError(f"pixel range: LOW must lie below HIGH, got {low:g}:{high:g}")
    if given and config.pixel_range not in (None, (low, high)):
        raise CheckpointError(
            f"--pixel-range {given} contradicts the pixel_range of --config, "
            f"{list(config.pixel_range or ())}"
        )
    return low, high


def _policies(
    models: Models, config: ExportConfig, recipe: Recipe | None
) -> dict[str, MaskedPolicyInfo]:
    tuned = {each.name: each.info for each in models.tuned}
    if models.policy is None:
        return tuned
    seed = UNTRAINED_SEED if models.untrained else None
    if recipe is not None:
        return {
            POLICY: MaskedPolicyInfo(residual=True, untrained_seed=seed, **vars(recipe)),
            **tuned,
        }
    said, stored = config.policy_residual, models.stored.residual
    if None not in (said, stored) and said != stored:
        raise CheckpointError(
            f"policy_residual in --config is {json.dumps(said)}, but the policy was trained with "
            f"heu {int(bool(stored))}, as its file says; leave policy_residual out"
        )
    # The official default: residuals for CC3M (text), none for ImageNet (classes). Without
    # them an untrained policy would do the same at every step.
    default = models.untrained or not models.transformer.class_conditional
    info = MaskedPolicyInfo(
        residual=next(each for each in (stored, said, default) if each is not None),
        steps=models.stored.steps,
        untrained_seed=seed,
    )
    return {POLICY: info, **tuned}


def graphs(models: Models, model: MaskedModel) -> dict[str, Graph]:
    """Every graph of loaded models."""
    ranged = models.tokenizer if models.pixels == (0, 1) else _From(models.tokenizer, models.pixels)
    networks: dict[str, nn.Module] = {}
    if models.policy is not None:
        networks = {POLICY: models.policy, **{each.name: each.network for each in models.tuned}}
    transformer: nn.Module = models.transformer
    if models.cached_context:
        transformer = WithCache(models.transformer, features=bool(networks))
    elif not networks:
        transformer = LogitsOnly(models.transformer)
    found = masked_graphs(model, transformer, ranged, networks)
    if models.encoder is not None:
        found[models.encoder.info.graph] = models.encoder.graph()
    return found


class _From(nn.Module):
    """A tokenizer with another range of pixel values than 0 … 1, brought to it."""

    def __init__(self, tokenizer: VQModel, pixels: tuple[float, float]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.low, self.span = pixels[0], pixels[1] - pixels[0]

    def unclamped(self, tokens: Tensor) -> Tensor:
        """Token ids ``[B, N]`` → image ``[B, 3, H, W]``."""
        return (self.tokenizer.unclamped(tokens) - self.low) / self.span

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.clamp(self.unclamped(tokens), 0.0, 1.0)

    def encode(self, image: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` → token ids ``[B, N]``."""
        return self.tokenizer.encode(self.low + self.span * image)
