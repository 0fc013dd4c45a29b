"""Files of tuned policies: weights in half precision, and what the bundle is told of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from fewstep.export import checkpoint, layout
from fewstep.export.models.policy import FixedPolicy, PolicyNet
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.families import family_of
from fewstep.runtime.files import replacing
from fewstep.runtime.policies import PolicyName

KEY = "fewstep_policy"
"""Of the record in the metadata of such a file."""

_TABLE = "actions"


class _Record(BaseModel):
    """A file without a kind is of a masked model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: PolicyName
    kind: str = "masked"
    info: dict[str, Any]


@dataclass(frozen=True)
class TunedPolicy:
    """A tuned policy: its name, its network, what the manifest says of it, and its family.

    ``info``: of the family's own :class:`~fewstep.runtime.policies.PolicyInfo`.
    """

    name: str
    network: nn.Module
    info: Any
    kind: str


def save_tuned(path: Path, policy: TunedPolicy) -> None:
    """Write a safetensors file that ``fewstep export --tuned-policy`` reads.

    Raises:
        OutputError: the folder is not writable, or the disk is full.
    """
    from safetensors.torch import save

    half = {key: value.half().contiguous() for key, value in policy.network.state_dict().items()}
    info = policy.info.model_dump(mode="json")
    record = _Record(name=policy.name, kind=policy.kind, info=info).model_dump_json()
    with replacing(path) as temporary:
        temporary.write_bytes(save(half, {KEY: record}))


def load_tuned(path: Path, kind: str) -> TunedPolicy:
    """Read such a file of a policy for models of the family ``kind``.

    Raises:
        CheckpointError: absent, damaged, no tuned policy, or one of another family.
    """
    content, rules = checkpoint.open_checkpoint(path), family_of(kind).policies
    assert rules is not None
    try:
        record = _Record.model_validate_json(json.dumps(content.metadata[KEY]))
    except (ValidationError, KeyError, TypeError) as error:
        raise CheckpointError(_not_tuned(path)) from error
    if record.kind != kind:
        raise CheckpointError(
            f"{path} is a policy for models of the family {record.kind}, these are {kind}: pass "
            "one that was tuned for them"
        )
    try:
        info = rules.Info.model_validate(record.info)
        state = {key: value for key, value in content.tree.items() if isinstance(value, Tensor)}
        network = _network(state, len(rules.parameters))
    except (ValidationError, KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(_not_tuned(path)) from error
    layout.load_into(network, state, path)
    return TunedPolicy(record.name, network, info, kind)


def _not_tuned(path: Path) -> str:
    return (
        f"{path} is no tuned policy; expected a file that fewstep calibrate policy wrote "
        "(policies of the authors go to --policy, in the place of --untrained-policy)"
    )


def _network(state: layout.State, actions: int) -> nn.Module:
    """A network of the state's shape."""
    if _TABLE in state:
        if state[_TABLE].ndim != 2 or state[_TABLE].shape[1] != actions:
            raise ValueError(f"a table has {actions} actions per step")
        return FixedPolicy(len(state[_TABLE]), actions)
    embed = state.get("x_embedder.weight")
    hidden = len(state["dw_conv.weight"])
    channels, (first, flat) = len(state["pw_conv.weight"]), state["linear1.weight"].shape
    return PolicyNet(
        hidden if embed is None else embed.shape[1],
        len(state["linear3.weight"]),
        hidden,
        2 * round((flat / channels) ** 0.5),
        channels,
        (first, len(state["linear2.weight"])),
    )
