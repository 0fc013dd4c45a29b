"""fewstep's export: from an author's checkpoint to a bundle of ONNX graphs."""

from fewstep.export.masked import Checkpoints, export_masked

__all__ = ["Checkpoints", "export_masked"]
