"""fewstep's export: from an author's checkpoints to a bundle of ONNX graphs.

:func:`fewstep.export.flow.export` does it. What is here needs no torch: it describes forms, in
which checkpoints are published.
"""

from fewstep.export.source import Exportable, Graph, Option, Source, register

__all__ = ["Exportable", "Graph", "Option", "Source", "register"]
