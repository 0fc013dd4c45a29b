"""Makes the bundles that the CUDA tests and the benchmark use, on any machine that has torch.

    python tests/gpu/bundles.py FOLDER [--sample]

The folder is what ``FEWSTEP_TEST_BUNDLES`` names: ``tiny/``, ``tiny-text/``, ``tiny-var/`` and
``toy/`` with kernels, the official models' logits (``official-logits.npz``), and with ``--sample``
the Fashion sample with kernels, fp16 graphs, and the engines that can be built without a GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.exported import copy_of  # noqa: E402
from tests.gpu import official_logits, sample  # noqa: E402
from tests.toy.family import ToyFamily  # noqa: E402

from fewstep.build import pipeline  # noqa: E402
from fewstep.runtime.bundle import Bundle  # noqa: E402
from fewstep.runtime.engines.compatibility import RTX_CAPABILITIES  # noqa: E402
from fewstep.runtime.errors import MissingDependencyError  # noqa: E402
from fewstep.runtime.families import register  # noqa: E402
from fewstep.runtime.kernels.compile import CompiledKernels, KernelCompiler  # noqa: E402
from fewstep.runtime.kernels.cubins import add_kernels  # noqa: E402
from fewstep.runtime.probe import find_driver  # noqa: E402

CAPABILITIES = ("8.0", "8.7", "8.9", "9.0", "10.0", "11.0", "12.0")
"""Of the GPUs that the kernels are for, as far as the toolchain knows them: Ampere, Orin, Ada,
Hopper, Blackwell with Thor."""


def make(folder: Path, kernels: CompiledKernels, *, with_sample: bool = False) -> None:
    """Make them all in a folder that does not exist yet, or is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    register(ToyFamily())
    for name in ("tiny", "tiny-text", "tiny-var", "toy"):
        add_kernels(Bundle.read(copy_of(name, folder / name)), kernels)
    official_logits.write(folder)
    if with_sample:
        _add_engines(sample.export(folder))


def _kernels() -> CompiledKernels:
    """As this environment's NVRTC compiles them; those for a GPU at hand too."""
    compiler, driver = KernelCompiler(), find_driver()
    here = [gpu.compute_capability for gpu in driver.gpus] if driver else []
    wanted = dict.fromkeys([*CAPABILITIES, *here])
    return compiler.compile([each for each in wanted if each in compiler.known()])


def _add_engines(bundle: Path) -> None:
    """Engines of TensorRT-RTX in fp16, for those of the GPUs that it knows, where it is."""
    known = tuple(each for each in CAPABILITIES if each in RTX_CAPABILITIES)
    request = pipeline.BuildRequest(
        bundle=bundle, backend="tensorrt-rtx", precision="fp16", capabilities=known, kernels=False
    )
    try:
        pipeline.build(request)
    except MissingDependencyError as error:
        print(f"no engines for the sample: {error}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the bundles for the CUDA tests.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sample", action="store_true", help="the Fashion sample as well")
    options = parser.parse_args(arguments)
    make(options.folder, _kernels(), with_sample=options.sample)


if __name__ == "__main__":
    main()
