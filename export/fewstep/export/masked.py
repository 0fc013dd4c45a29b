"""Masked token models of the AdaNAT repository: from their files to what is exported.

A transformer (U-ViT), a tokenizer (VQGAN) and, if the model has any, policy networks.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.export import checkpoint, presets
from fewstep.export.config import ExportConfig
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.source import Exportable, Graph
from fewstep.export.tuned import TunedPolicy, load_tuned
from fewstep.runtime.condition import ClassCondition, TextCondition
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.families.masked.model import MaskedModel, PolicyInfo
from fewstep.runtime.families.masked.schedule import EXPORTED_POLICY, POLICY
from fewstep.runtime.families.masked.settings import MaskedSettings

UNTRAINED_SEED = 0
"""What the weights of an untrained policy are drawn from."""

_UNCONDITIONAL_FILE = "unconditional.npz"
_PUBLISHED_GRID = 16  # side, in tokens, of every published model
_ACTOR = "policy_old.actor."


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
        unconditional_text: ``.npy`` with the text states of the empty text ``[L, D]``, for
            guidance in text-conditional models.
    """

    transformer: Path
    tokenizer: Path
    policy: Path | None = None
    untrained_policy: bool = False
    tuned_policy: Sequence[Path] = ()
    unconditional_text: Path | None = None

    def by_name(self) -> dict[str, Path]:
        """Every file, by what it is."""
        single = {name: path for name, path in vars(self).items() if isinstance(path, Path)}
        return single | {f"tuned/{path.name}": path for path in self.tuned_policy}


@dataclass(frozen=True)
class Models:
    """Loaded models that belong together, in evaluation mode.

    ``policy`` is ``None`` for fixed schedules only; ``untrained``: nothing trained it.
    ``unconditional_text``: states of the empty text ``[L, D]``, float32.
    """

    transformer: UViT
    tokenizer: VQModel
    policy: PolicyNet | None = None
    untrained: bool = False
    tuned: tuple[TunedPolicy, ...] = ()
    unconditional_text: Array | None = None


def load(files: Checkpoints, config: ExportConfig) -> Exportable:
    """Read the files.

    Raises:
        CheckpointError: a file or the configuration does not fit.
    """
    models = load_models(files, config)
    model, extra = describe(models, config), {}
    if models.unconditional_text is not None:
        content = io.BytesIO()
        np.savez(content, text=models.unconditional_text)
        extra[_UNCONDITIONAL_FILE] = content.getvalue()
    return Exportable(files.transformer.stem, model, graphs(models, model), files.by_name(), extra)


def load_models(files: Checkpoints, config: ExportConfig) -> Models:
    """Load models, and check that they belong together.

    Raises:
        CheckpointError: a file does not load, or the models do not fit each other.
    """
    transformer = presets.load(
        UViT, _transformer_state(files.transformer), files.transformer, config.transformer
    )
    policy = None
    if files.untrained_policy:
        policy = untrained_policy(transformer, config.policy)
    elif files.policy is not None:
        policy = presets.load(PolicyNet, _policy_state(files.policy), files.policy, config.policy)
    tokenizer = presets.load(
        VQModel, _tokenizer_state(files.tokenizer), files.tokenizer, config.tokenizer
    )
    models = Models(
        transformer,
        tokenizer,
        policy,
        files.untrained_policy,
        tuple(load_tuned(path) for path in files.tuned_policy),
        _unconditional_text(files.unconditional_text, transformer),
    )
    _check_fit(models)
    return models


def untrained_policy(network: UViT, arguments: Mapping[str, object] | None) -> PolicyNet:
    """A policy network for a transformer as AdaNAT's training begins with it.

    Its action is 0 in every state. Its other weights depend on the size alone: PyTorch's CPU
    generator draws them from ``UNTRAINED_SEED``, and is then as it was.

    Args:
        network: the transformer.
        arguments: the constructor's; ``None`` for a transformer of a published width and grid,
            whose published policy they are taken from.

    Raises:
        CheckpointError: no size is known, or unknown arguments.
    """
    width, side = network.embed_dim, round(network.num_tokens**0.5)
    if arguments is None and side == _PUBLISHED_GRID:
        sizes = (preset.arguments for preset in presets.PRESETS[PolicyNet])
        arguments = next((each for each in sizes if each["in_channels"] == width), None)
    if arguments is None:
        example = {"in_channels": width, "hidden_size": 512, "grid_size": side}
        raise CheckpointError(
            f"no published policy reads {width} features of {side}×{side} tokens; give the size of "
            f"the untrained one in --config, such as {json.dumps({'policy': example})}"
        )
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(UNTRAINED_SEED)
        policy = presets.build(PolicyNet, arguments, "--untrained-policy", device="cpu")
    return policy.eval().requires_grad_(False)


def _transformer_state(path: Path) -> checkpoint.State:
    """``nnet_ema.pth``: a plain dictionary; the CC3M one carries ``position_ids`` to drop."""
    state = checkpoint.tensors(path, checkpoint.read(path))
    return {key: value for key, value in state.items() if "position_ids" not in key}


def _tokenizer_state(path: Path) -> checkpoint.State:
    """``vqgan_jax_strongaug.ckpt``: plain, or under ``state_dict``."""
    content = checkpoint.read(path)
    return checkpoint.tensors(path, content.get("state_dict", content))


def _policy_state(path: Path) -> checkpoint.State:
    """``ckpt_*.pth``: ``policy_old.actor.*`` under ``model``; or a plain actor."""
    content = checkpoint.read(path)
    state = checkpoint.tensors(path, content.get("model", content))
    actor = {key.removeprefix(_ACTOR): state[key] for key in state if key.startswith(_ACTOR)}
    return actor or state


def _unconditional_text(path: Path | None, transformer: UViT) -> Array | None:
    if path is None:
        return None
    if transformer.class_conditional:
        raise CheckpointError("a class-conditional transformer takes no --unconditional-text")
    shape = (transformer.extras, transformer.context_width)
    try:
        text = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a .npy array: {error}") from error
    if not isinstance(text, np.ndarray):
        raise CheckpointError(f"{path}: expected one .npy array, got an .npz archive")
    if text.shape != shape:
        raise CheckpointError(f"{path}: expected shape {list(shape)}, got {list(text.shape)}")
    return np.asarray(text, np.float32)


def _check_fit(models: Models) -> None:
    transformer, tokenizer, policy = models.transformer, models.tokenizer, models.policy
    names = [each.name for each in models.tuned]
    if {POLICY, EXPORTED_POLICY} & set(names) or len(set(names)) < len(names):
        raise CheckpointError(
            f"tuned policies need different names, other than {POLICY} and {EXPORTED_POLICY}; "
            f"got {', '.join(names)}"
        )
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
    wrong = [f"{what} {a} but the {who}'s is {b}" for what, a, b, who in pairs if a != b]
    if wrong:
        raise CheckpointError(
            f"the checkpoints do not belong together: the transformer expects {'; '.join(wrong)}"
        )


def describe(models: Models, config: ExportConfig) -> MaskedModel:
    """What the manifest says of loaded models.

    Raises:
        CheckpointError: class names or defaults of the configuration do not fit, or a policy
            has no empty text.
    """
    transformer, side = models.transformer, round(models.transformer.num_tokens**0.5)
    condition, defaults = _condition(models, config), config.settings(MaskedSettings())
    if isinstance(condition, TextCondition) and condition.unconditional_file is None:
        defaults = defaults.model_copy(update={"guidance": (0.0, 0.0)})
    return MaskedModel(
        grid=(side, side),
        codebook_size=transformer.codebook_size,
        mask_token=transformer.codebook_size,
        feature_width=transformer.embed_dim,
        image_size=(models.tokenizer.resolution, models.tokenizer.resolution),
        condition=condition,
        policies=_policies(models, config),
        defaults=defaults,
    )


def _condition(models: Models, config: ExportConfig) -> ClassCondition | TextCondition:
    transformer = models.transformer
    if transformer.class_conditional:
        count, names = transformer.num_classes - 1, config.class_names
        if names is not None and len(names) != count:
            raise CheckpointError(f"class_names: expected {count} names, got {len(names)}")
        return ClassCondition(num_classes=count, unconditional_id=count, class_names=names)
    length, width = transformer.extras, transformer.context_width
    if models.unconditional_text is not None:
        return TextCondition(length=length, width=width, unconditional_file=_UNCONDITIONAL_FILE)
    if models.policy is not None:
        raise CheckpointError(
            "a policy always uses guidance, so a text-conditional model needs the states of the "
            f"empty text too, a .npy array [{length}, {width}] (--unconditional-text)"
        )
    return TextCondition(length=length, width=width)


def _policies(models: Models, config: ExportConfig) -> dict[str, PolicyInfo]:
    tuned = {each.name: each.info for each in models.tuned}
    if models.policy is None:
        return tuned
    # The official default: residuals for CC3M (text), none for ImageNet (classes). Without
    # them an untrained policy would do the same at every step.
    default = models.untrained or not models.transformer.class_conditional
    info = PolicyInfo(
        residual=default if config.policy_residual is None else config.policy_residual,
        untrained_seed=UNTRAINED_SEED if models.untrained else None,
    )
    return {POLICY: info, **tuned}


def graphs(models: Models, model: MaskedModel) -> dict[str, Graph]:
    """Every graph of loaded models, with examples of batch 2."""
    generator = torch.Generator().manual_seed(0)
    n, v = model.num_tokens, model.codebook_size
    masked = torch.randint(v + 1, (2, n), generator=generator, dtype=torch.int32)
    tokens = torch.randint(v, (2, n), generator=generator, dtype=torch.int32)
    condition: dict[str, Tensor]
    if isinstance(model.condition, ClassCondition):
        condition = {"condition": torch.tensor([0, model.condition.num_classes], dtype=torch.int32)}
    else:
        shape = (2, model.condition.length, model.condition.width)
        condition = {"text": torch.randn(shape, generator=generator)}
    inputs = {"tokens": masked, **condition}
    decoder = Graph(models.tokenizer, {"tokens": tokens}, ("image",))
    if models.policy is None:
        logits = Graph(_LogitsOnly(models.transformer), inputs, ("logits",))
        return {"transformer": logits, "decoder": decoder}
    features = torch.randn((2, n, model.feature_width), generator=generator)
    state = {"features": features, "step": torch.tensor([0, 3], dtype=torch.int32)}
    networks = {POLICY: models.policy, **{each.name: each.network for each in models.tuned}}
    return {
        "transformer": Graph(models.transformer, inputs, ("logits", "features")),
        **{name: Graph(network, state, ("action",)) for name, network in networks.items()},
        "decoder": decoder,
    }


class _LogitsOnly(nn.Module):
    """The transformer without its features, which only a policy reads."""

    def __init__(self, transformer: UViT) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        logits: Tensor = self.transformer(tokens, condition)[0]
        return logits
