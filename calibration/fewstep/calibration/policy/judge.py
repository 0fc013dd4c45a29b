"""The trained discriminator as a graph: the bundle's judge (``fewstep.runtime.best_of``).

    pixels → feature network → pooled features by the real ones' mean and deviation
           → discriminator, under the condition → mean logit

The weights of the feature network are in the graph, so that it reads pixels and needs no PyTorch.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.calibration.policy.data import RealImages
from fewstep.calibration.policy.discriminator import Discriminator, mean_logit
from fewstep.calibration.policy.features import FeatureNetwork, Features
from fewstep.export.onnx_graph import export_graph
from fewstep.export.source import Graph
from fewstep.runtime.best_of import JUDGE
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import run_once
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import ExportError
from fewstep.runtime.records import JudgeInfo

TOLERANCE = 1e-4
"""Largest difference between scores of ONNX Runtime and PyTorch."""

_CHECKED = 16  # real images


class JudgeNetwork(nn.Module):
    """Scores of images, as the reward of a tuning sees them before its sigmoid.

    Args:
        network: the frozen features.
        discriminator: as it is trained; a copy is taken.
        mean: of the real images' pooled features, ``[D]``.
        deviation: theirs, ``[D]``.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        discriminator: Discriminator,
        mean: Tensor,
        deviation: Tensor,
    ) -> None:
        super().__init__()
        self.network, self.discriminator = copy.deepcopy(network), copy.deepcopy(discriminator)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("deviation", deviation.clone())
        self.eval().requires_grad_(False).cpu()

    def forward(self, pixels: Tensor, condition: Tensor) -> Tensor:
        """Mean logits ``[B]`` of ``pixels [B, H, W, 3]`` uint8; positive means real."""
        found = self.network(pixels)
        pooled = (found.pooled - self.get_buffer("mean")) / self.get_buffer("deviation")
        return mean_logit(self.discriminator(Features(found.maps, pooled), condition))


@dataclass(frozen=True)
class ExportedJudge:
    """What the manifest says of a judge, and the contents of its file."""

    info: JudgeInfo
    content: bytes


def export_judge(
    judge: JudgeNetwork, real: RealImages, *, policy: str, features: str, updates: int
) -> ExportedJudge:
    """Export a judge and compare it with PyTorch on real images.

    Args:
        judge: what to export.
        real: what it was trained with.
        policy: name of the policy whose tuning trained it.
        features: name of its feature network.
        updates: of that tuning.

    Raises:
        ExportError: it cannot be exported, or scores differ by more than :data:`TOLERANCE`.
    """
    rows = real.part(_CHECKED)
    fed = {"pixels": real.images[rows], "condition": real.condition[rows]}
    example = {name: torch.from_numpy(np.ascontiguousarray(each[:2])) for name, each in fed.items()}
    with tempfile.TemporaryDirectory() as folder:
        made = export_graph(JUDGE, Graph(judge, example, ("score",)), Path(folder))
        content = (Path(folder) / made.file).read_bytes()
        engine = OnnxRuntimeEngine(JUDGE, Path(folder) / made.file, made)
        found = run_once(CpuDevice(), engine, fed)["score"]
        engine.close()
    with torch.no_grad():
        expected = judge(*(torch.from_numpy(each) for each in fed.values())).numpy()
    if not (error := float(np.abs(found - expected).max())) <= TOLERANCE:
        raise ExportError(
            f"graph '{JUDGE}': scores of ONNX Runtime differ from PyTorch's by {error:.2g}, more "
            f"than {TOLERANCE:.0e}; tune without --keep-judge, or with other --features"
        )
    file = f"{JUDGE}-{hashlib.sha256(content).hexdigest()[:12]}.onnx"
    info = JudgeInfo(
        graph=made.model_copy(update={"file": file}),
        policy=policy,
        features=features,
        updates=updates,
        data_sha256=real.sha256,
    )
    return ExportedJudge(info, content)
