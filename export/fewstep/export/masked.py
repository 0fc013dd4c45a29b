"""Masked token models (MaskGIT, AdaNAT) from checkpoints to a bundle.

Flow: read the checkpoints → recognise or configure the models → export and check each graph →
record golden rollouts with PyTorch → write the manifest → rename the finished folder into place.
An export that fails or is interrupted leaves nothing behind.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.export import checkpoint, published
from fewstep.export.config import ExportConfig, read_config
from fewstep.export.golden import GOLDEN_FILE, record
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.onnx_graph import export_graph
from fewstep.export.torch_engine import TorchEngine
from fewstep.export.tuned import TunedPolicy, load_tuned
from fewstep.runtime.bundle import Bundle, write_manifest
from fewstep.runtime.errors import CheckpointError, RequestError, choose
from fewstep.runtime.files import replacing_folder, sha256
from fewstep.runtime.manifest import (
    MANIFEST_NAME,
    CheckpointInfo,
    ClassCondition,
    GraphInfo,
    MaskedModel,
    PolicyInfo,
    TextCondition,
)
from fewstep.runtime.request import RAMPS, schedule_of, steps_of
from fewstep.runtime.schedule import EXPORTED_POLICY, POLICY

FAMILIES = ("adanat", "maskgit")
_UNCONDITIONAL_FILE = "unconditional.npz"
_TOOLS = ("fewstep", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Checkpoints:
    """The files to export.

    Args:
        transformer: U-ViT state dict.
        tokenizer: VQGAN state dict.
        policy: AdaNAT policy checkpoint; refused by ``maskgit``. ``adanat`` needs it, or an
            untrained one.
        config: ``--config`` file; not needed for published sizes.
        unconditional_text: ``.npy`` with the text states of the empty text ``[L, D]``, for
            guidance in text-conditional models.
        tuned: policies that ``fewstep calibrate policy`` wrote, oldest first, beside either.
        untrained_policy: add a policy network as AdaNAT initialises it, in the place of
            ``policy``; by default with the residual, so that it follows the heuristic schedule
            until ``fewstep calibrate policy`` tunes it.
    """

    transformer: Path
    tokenizer: Path
    policy: Path | None = None
    config: Path | None = None
    unconditional_text: Path | None = None
    tuned: tuple[Path, ...] = ()
    untrained_policy: bool = False

    @property
    def with_policy(self) -> bool:
        """Whether there is a policy network, trained or not."""
        return self.policy is not None or self.untrained_policy


@dataclass(frozen=True)
class Models:
    """The loaded models, in evaluation mode.

    Made by :func:`load_models`; ``policy`` is ``None`` for fixed schedules only.
    """

    transformer: UViT
    tokenizer: VQModel
    policy: PolicyNet | None
    tuned: tuple[TunedPolicy, ...] = ()


def export_masked(
    family: str,
    checkpoints: Checkpoints,
    out: Path,
    *,
    overwrite: bool = False,
    command: str = "",
    progress: Callable[[str], None] = lambda stage: None,
) -> Bundle:
    """Export a masked token model to a bundle at ``out``.

    Args:
        family: ``adanat`` (with a policy network) or ``maskgit`` (fixed schedules, and a policy
            network if it is to be tuned here).
        checkpoints: the files.
        out: the bundle folder to make.
        overwrite: replace an existing folder once the new one is whole.
        command: what was typed, for the provenance record.
        progress: called with the name of each stage as it begins.

    Raises:
        CheckpointError: a checkpoint or the configuration does not fit.
        ExportError: a graph cannot be exported or disagrees with PyTorch.
        OutputError: ``out`` exists or cannot be written.
    """
    if family not in FAMILIES:
        raise CheckpointError(choose("family", family, FAMILIES))
    _check_policies(family, checkpoints)
    config = read_config(checkpoints.config)
    with replacing_folder(out, overwrite=overwrite, marker=MANIFEST_NAME) as folder:
        progress("reading checkpoints")
        models = load_models(
            checkpoints.transformer,
            checkpoints.tokenizer,
            checkpoints.policy,
            config,
            checkpoints.tuned,
            untrained_policy=checkpoints.untrained_policy,
        )
        model = _describe(models, config, checkpoints, folder)
        _check_defaults(model)
        graphs, modules = {}, {}
        for name, (module, inputs, outputs) in _graphs(models, model).items():
            progress(f"exporting {name}")
            graphs[name], _ = export_graph(module, name, inputs, outputs, folder)
            modules[name] = module
        _finish(family, folder, model, graphs, config, checkpoints, command, golden=False)
        progress("recording golden rollouts")
        engines = {name: TorchEngine(name, modules[name], graphs[name]) for name in graphs}
        record(Bundle.read(folder), engines)
        progress("writing manifest")
        _finish(family, folder, model, graphs, config, checkpoints, command, golden=True)
    return Bundle.read(out)


def _check_policies(family: str, files: Checkpoints) -> None:
    if files.policy is not None and files.untrained_policy:
        raise CheckpointError("--policy and --untrained-policy exclude each other; pass one")
    if family == "adanat" and not files.with_policy:
        raise CheckpointError(
            "family adanat needs a policy checkpoint (--policy), or --untrained-policy"
        )
    if family == "maskgit" and files.policy is not None:
        raise CheckpointError("family maskgit takes no policy checkpoint (--policy)")
    if files.tuned and not files.with_policy:
        raise CheckpointError("--tuned-policy needs another policy: pass --untrained-policy too")


def load_models(
    transformer: Path,
    tokenizer: Path,
    policy: Path | None,
    config: ExportConfig,
    tuned: Sequence[Path] = (),
    *,
    untrained_policy: bool = False,
) -> Models:
    """Load checkpoints that belong together, with a policy from a file, untrained, or none.

    Raises:
        CheckpointError: a file does not load, or the models do not fit each other.
    """
    network = published.transformer(
        _transformer_state(transformer), transformer, config.transformer
    )
    actor = None
    if untrained_policy:
        actor = published.untrained_policy(network, config.policy)
    elif policy is not None:
        actor = published.policy(_policy_state(policy), policy, config.policy)
    models = Models(
        network,
        published.tokenizer(_tokenizer_state(tokenizer), tokenizer, config.tokenizer),
        actor,
        tuple(load_tuned(path) for path in tuned),
    )
    _check_fit(models)
    return models


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
    return published.strip_prefix(state, "policy_old.actor.") or state


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


def _describe(
    models: Models, config: ExportConfig, files: Checkpoints, folder: Path
) -> MaskedModel:
    transformer, side = models.transformer, round(models.transformer.num_tokens**0.5)
    policies: dict[str, PolicyInfo] = {}
    if models.policy is not None:
        # The official default: residuals for CC3M (text), none for ImageNet (classes). Without
        # them an untrained policy would do the same at every step.
        default = files.untrained_policy or not transformer.class_conditional
        policies["policy"] = PolicyInfo(
            residual=default if config.policy_residual is None else config.policy_residual,
            untrained_seed=published.UNTRAINED_SEED if files.untrained_policy else None,
        )
    policies |= {each.name: each.info for each in models.tuned}
    condition = _condition(transformer, config, files, folder)
    defaults = config.defaults
    if isinstance(condition, TextCondition) and condition.unconditional_file is None:
        defaults = defaults.model_copy(update={"guidance": (0.0, 0.0)})
    return MaskedModel(
        grid=(side, side),
        codebook_size=transformer.codebook_size,
        mask_token=transformer.codebook_size,
        feature_width=transformer.embed_dim,
        image_size=(models.tokenizer.resolution, models.tokenizer.resolution),
        condition=condition,
        policies=policies,
        defaults=defaults,
    )


def _check_defaults(model: MaskedModel) -> None:
    """Refuse defaults that no generation could use, before the long work."""
    try:
        schedule_of(model, None, dict.fromkeys(RAMPS), steps_of(model, None))
    except RequestError as error:
        raise CheckpointError(f"the configuration's defaults: {error}") from error


def _condition(
    transformer: UViT, config: ExportConfig, files: Checkpoints, folder: Path
) -> ClassCondition | TextCondition:
    if transformer.class_conditional:
        if files.unconditional_text is not None:
            raise CheckpointError("a class-conditional transformer takes no --unconditional-text")
        unconditional = transformer.num_classes - 1
        names = config.class_names
        if names is not None and len(names) != unconditional:
            raise CheckpointError(f"class_names: expected {unconditional} names, got {len(names)}")
        return ClassCondition(
            num_classes=unconditional, unconditional_id=unconditional, class_names=names
        )
    length, width = transformer.extras, transformer.context_width
    if files.unconditional_text is None:
        if files.with_policy:
            raise CheckpointError(
                "a policy always uses guidance, so a text-conditional model needs the states of "
                f"the empty text too, a .npy array [{length}, {width}] (--unconditional-text)"
            )
        return TextCondition(length=length, width=width)
    text = _read_text(files.unconditional_text, (length, width))
    np.savez(folder / _UNCONDITIONAL_FILE, text=text)
    return TextCondition(length=length, width=width, unconditional_file=_UNCONDITIONAL_FILE)


def _read_text(
    path: Path, shape: tuple[int, int]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    try:
        text = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a .npy array: {error}") from error
    if not isinstance(text, np.ndarray):
        raise CheckpointError(f"{path}: expected one .npy array, got an .npz archive")
    if text.shape != shape:
        raise CheckpointError(f"{path}: expected shape {list(shape)}, got {list(text.shape)}")
    return np.asarray(text, np.float32)


def _graphs(
    models: Models, model: MaskedModel
) -> dict[str, tuple[nn.Module, Mapping[str, Tensor], tuple[str, ...]]]:
    """Module, example inputs (batch 2) and output names of every graph."""
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
    transformer_inputs = {"tokens": masked, **condition}
    decoder = (models.tokenizer, {"tokens": tokens}, ("image",))
    if models.policy is None:
        logits = (_LogitsOnly(models.transformer), transformer_inputs, ("logits",))
        return {"transformer": logits, "decoder": decoder}
    features = torch.randn((2, n, model.feature_width), generator=generator)
    step = torch.tensor([0, 3], dtype=torch.int32)
    policies: dict[str, nn.Module] = {"policy": models.policy}
    policies |= {each.name: each.network for each in models.tuned}
    return {
        "transformer": (models.transformer, transformer_inputs, ("logits", "features")),
        **{
            name: (network, {"features": features, "step": step}, ("action",))
            for name, network in policies.items()
        },
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


def _finish(
    family: str,
    folder: Path,
    model: MaskedModel,
    graphs: Mapping[str, GraphInfo],
    config: ExportConfig,
    files: Checkpoints,
    command: str,
    *,
    golden: bool,
) -> None:
    sources = {name: path for name, path in vars(files).items() if isinstance(path, Path)}
    sources |= {f"tuned/{path.name}": path for path in files.tuned}
    write_manifest(
        folder,
        {
            "family": family,
            "name": config.name or files.transformer.stem,
            "model": model,
            "graphs": graphs,
            "golden": GOLDEN_FILE if golden else None,
            "provenance": {
                "created": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
                "command": command,
                "tools": {"python": platform.python_version()}
                | {tool: importlib.metadata.version(tool) for tool in _TOOLS},
                "checkpoints": {
                    name: CheckpointInfo(file=path.name, sha256=sha256(path))
                    for name, path in sources.items()
                },
            },
        },
    )
