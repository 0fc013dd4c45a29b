"""VAR: from its authors' files to what is exported.

A transformer, a multi-scale tokenizer and, if there are any, policy networks of AdaGen's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.export import checkpoint, presets
from fewstep.export.conditions import class_condition
from fewstep.export.config import ExportConfig
from fewstep.export.layout import require_agreement
from fewstep.export.models import PolicyNet
from fewstep.export.models.var import VAR
from fewstep.export.models.var_quantizer import PATCH_NUMS, phi_indices
from fewstep.export.models.var_vae import VQVAE
from fewstep.export.parts.var import AdaGenPolicy
from fewstep.export.policies import (
    PUBLISHED_GRID,
    UNTRAINED_SEED,
    check_given,
    check_names,
    untrained_policy,
)
from fewstep.export.source import Exportable
from fewstep.export.tuned import TunedPolicy, load_tuned
from fewstep.export.var_graphs import graphs
from fewstep.runtime.errors import CheckpointError, choose
from fewstep.runtime.families.var.model import VarModel, VarPolicyInfo
from fewstep.runtime.families.var.policies import VarPolicies
from fewstep.runtime.families.var.settings import SAMPLING, VarSettings
from fewstep.runtime.policies import POLICY

_D30_WIDTH, _D30_GUIDANCE = 1920, 2.0  # the recipe of var_d30_policy.pth; others have 1.5


@dataclass(frozen=True)
class Checkpoints:
    """The files to read.

    Args:
        transformer: VAR's state dict.
        tokenizer: the VQVAE's state dict.
        policy: of AdaGen.
        untrained_policy: make a policy network in its place, which follows the recipe until
            ``fewstep calibrate policy`` tunes it.
        tuned_policy: policies that ``fewstep calibrate policy`` wrote, oldest first.
        encoder: whether the bundle can edit pictures.
    """

    transformer: Path
    tokenizer: Path
    policy: Path | None = None
    untrained_policy: bool = False
    tuned_policy: Sequence[Path] = ()
    encoder: bool = False


@dataclass(frozen=True)
class Models:
    """Loaded models that belong together, in evaluation mode.

    ``policy`` is ``None`` for fixed schedules only. ``notes``: what was removed from the files or
    preferred in them.
    """

    transformer: VAR
    tokenizer: VQVAE
    policy: PolicyNet | None = None
    tuned: tuple[TunedPolicy, ...] = ()
    notes: tuple[str, ...] = ()


def load(files: Checkpoints, config: ExportConfig) -> Exportable:
    """Read the files.

    Raises:
        CheckpointError: a file or the configuration does not fit.
    """
    check_given(files.policy, files.untrained_policy, files.tuned_policy)
    config.refuse("var", "policy_residual", "pixel_range", "latent_scale", "presets")
    config.settings(VarSettings())
    models = load_models(files, config)
    model, notes = describe(models, config, untrained=files.untrained_policy)
    model = model.model_copy(update={"editable": files.encoder})
    networks: dict[str, nn.Module] = {} if models.policy is None else {POLICY: models.policy}
    networks |= {each.name: each.network for each in models.tuned}
    return Exportable(
        files.transformer.stem,
        model,
        graphs(model, models.transformer, models.tokenizer, networks),
        checkpoint.named_files(vars(files)),
        notes=(*models.notes, *notes),
    )


def load_models(files: Checkpoints, config: ExportConfig) -> Models:
    """Load models, and check that they belong together.

    Raises:
        CheckpointError: a file does not load, or the models do not fit each other.
    """
    said = dict(config.tokenizer or {})
    if "patch_nums" in (config.transformer or {}) and config.tokenizer is not None:
        said.setdefault("v_patch_nums", (config.transformer or {})["patch_nums"])
    tokenizer, read = presets.read(VQVAE, files.tokenizer, said or None)
    notes = [f"tokenizer: {note}" for note in read.notes]
    arguments = None
    if config.transformer is not None:
        if "vae_local" in config.transformer:
            raise CheckpointError("vae_local in --config: the tokenizer is its own; leave it out")
        arguments = {"vae_local": tokenizer, **config.transformer}
    transformer, read = _transformer(files.transformer, arguments)
    notes += [f"transformer: {note}" for note in read.notes]
    _check_fit(transformer, tokenizer, files, said)
    policy = None
    if files.untrained_policy:
        side = (config.policy or {}).get("grid_size", PUBLISHED_GRID)
        policy = untrained_policy(AdaGenPolicy, transformer.embed_dim, side, config.policy)
    elif files.policy is not None:
        policy, read = presets.read(AdaGenPolicy, files.policy, config.policy)
        notes += [f"policy: {note}" for note in read.notes]
    tuned = tuple(load_tuned(path, "var") for path in files.tuned_policy)
    check_names(tuned, VarPolicies.reserved)
    _check_policies(transformer, policy, tuned)
    return Models(transformer, tokenizer, policy, tuned, tuple(notes))


def _transformer(
    path: Path, arguments: Mapping[str, Any] | None
) -> tuple[VAR, checkpoint.Checkpoint]:
    """Read the transformer; of scales that it has no positions for, say so."""
    try:
        return presets.read(VAR, path, arguments)
    except CheckpointError as error:
        if arguments is None or "lvl_1L [" not in str(error):
            raise
        sides = list(arguments.get("patch_nums", PATCH_NUMS))
        count = sum(side * side for side in sides)
        raise CheckpointError(
            f"{error}; the scales of the configuration, patch_nums {sides}, have {count} positions"
        ) from error


def _check_fit(
    transformer: VAR, tokenizer: VQVAE, files: Checkpoints, said: Mapping[str, Any]
) -> None:
    pairs: list[tuple[str, object, object, str]] = [
        ("codebook size", transformer.codebook_size, tokenizer.vocab_size, "tokenizer"),
        ("width of a code", transformer.codebook_width, tokenizer.Cvae, "tokenizer"),
    ]
    if "v_patch_nums" in said:
        sides = list(transformer.patch_nums), list(tokenizer.v_patch_nums)
        pairs.append(("scales", *sides, "tokenizer"))
    require_agreement(pairs)
    stored = transformer.lvl_1L
    assert isinstance(stored, Tensor)
    if not torch.equal(stored, transformer.levels("cpu")):
        raise CheckpointError(
            f"{files.transformer} was trained on other scales, as its lvl_1L says, than patch_nums "
            f"{list(transformer.patch_nums)}: correct --config"
        )


def _check_policies(
    transformer: VAR, policy: PolicyNet | None, tuned: Sequence[TunedPolicy]
) -> None:
    networks: dict[str, nn.Module | None] = {"policy": policy}
    networks |= {each.name: each.network for each in tuned}
    found = {name: net for name, net in networks.items() if isinstance(net, PolicyNet)}
    side = next(iter(found.values())).grid_size if found else PUBLISHED_GRID
    for each in tuned:
        if each.info.steps not in (None, scales := len(transformer.patch_nums)):
            raise CheckpointError(
                f"the policy {each.name} was tuned for {each.info.steps} scales, and the "
                f"transformer has {scales}: leave it out, or tune one for this model"
            )
    for name, network in found.items():
        require_agreement(
            (
                ("feature width", transformer.embed_dim, network.in_channels, name),
                ("side of the features", side, network.grid_size, name),
                ("number of actions", len(SAMPLING), network.linear3.out_features, name),
            )
        )


def describe(
    models: Models, config: ExportConfig, *, untrained: bool
) -> tuple[VarModel, tuple[str, ...]]:
    """What the manifest says of loaded models, and what to say of that to the user.

    Raises:
        CheckpointError: class names, defaults or the policy's schedule do not fit, or a policy has
            nothing to guide with.
    """
    transformer, tokenizer = models.transformer, models.tokenizer
    condition, notes = class_condition(transformer.num_classes + 1, config, certain=True)
    defaults = config.settings(VarSettings())
    if not condition.has_unconditional and "guidance" not in config.defaults:
        defaults = defaults.model_copy(update={"guidance": (0.0, 0.0)})
    policies = _policies(models, config, untrained=untrained)
    if policies and not condition.has_unconditional:
        raise CheckpointError(
            "a policy always uses guidance, which needs a class id that stands for no class; leave "
            'the policy out, or "unconditional" of --config'
        )
    side = transformer.patch_nums[-1] * tokenizer.downsampling
    count = len(tokenizer.quantize.phis)
    model = VarModel(
        patch_nums=transformer.patch_nums,
        phis=phi_indices(count, len(transformer.patch_nums)),
        codebook_size=transformer.codebook_size,
        codebook_width=transformer.codebook_width,
        depth=transformer.depth,
        width=transformer.embed_dim,
        image_size=(side, side),
        condition=condition,
        policies=policies,
        feature_side=PUBLISHED_GRID if models.policy is None else models.policy.grid_size,
        defaults=defaults,
    )
    return model, notes


def _policies(models: Models, config: ExportConfig, *, untrained: bool) -> dict[str, VarPolicyInfo]:
    tuned = {each.name: each.info for each in models.tuned}
    if models.policy is None:
        if config.policy_schedule is not None:
            raise CheckpointError("policy_schedule in --config needs a policy; leave it out")
        return tuned
    given = config.policy_schedule or {}
    for name in given.keys() - {*SAMPLING}:
        raise CheckpointError(choose("setting of policy_schedule", name, SAMPLING))
    recipe: dict[str, Any] = {}
    if models.transformer.embed_dim == _D30_WIDTH:
        recipe["guidance"] = _D30_GUIDANCE
    info = VarPolicyInfo(
        **{**recipe, **given},
        untrained_seed=UNTRAINED_SEED if untrained else None,
    )
    return {POLICY: info, **tuned}
