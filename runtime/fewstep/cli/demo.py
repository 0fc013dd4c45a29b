"""``fewstep demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep import __version__
from fewstep.cli.common import export_module, out
from fewstep.runtime.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from fewstep.runtime.bundle import Bundle

_SAMPLE = Path("samples/fashion")
_ASSET = f"fewstep-sample-{__version__}.zip"


def demo_command(
    sample: Annotated[
        Path | None,
        typer.Option(help=f"Folder of a trained sample to export; {_SAMPLE} by default."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle to show in its place: a folder, or the .zip of a release."),
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Where results go.")] = Path(
        "demo-output"
    ),
) -> None:
    """The whole way on the sample: export, verify, generate, time.

    Export takes a clone and the extra `export`. Elsewhere --bundle shows the rest of the way, with
    the sample's bundle that comes with a release.
    """
    from fewstep.cli.tour import stage, tour
    from fewstep.runtime.files import require_writable

    if sample is not None and bundle is not None:
        raise RequestError("--sample is exported, --bundle is a bundle already: leave one out")
    require_writable(out_folder / "steps.gif")
    if bundle is not None:
        tour(_opened(bundle, out_folder), out_folder)
        return
    sample = sample or _SAMPLE
    _require_sample(sample)
    demo = export_module("demo")
    with stage(out, "exporting checkpoints to ONNX") as show:
        exported = demo.export_sample(sample, out_folder, progress=show)
    tour(exported, out_folder)


def _opened(path: Path, out_folder: Path) -> Bundle:
    """The bundle of a folder, or of a file, which is unpacked beside the results."""
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.packed import unpack

    return Bundle.read(path) if path.is_dir() else unpack(path, out_folder / "bundle")


def _require_sample(sample: Path) -> None:
    """Raise ``CheckpointError`` where there is nothing to export, and say what there is to do."""
    if not (sample / "weights" / "transformer.safetensors").is_file():
        raise CheckpointError(
            f"no trained sample in {sample}: a clone of the repository has one, and its export "
            f"needs: pip install 'fewstep[export]'. Without a clone download {_ASSET}, which comes "
            f"with the release, and run: fewstep demo --bundle {_ASSET}"
        )
