"""``fewstep verify``."""

from __future__ import annotations

import typer

from fewstep.cli.common import (
    BackendOption,
    BundleArgument,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    show,
)


def verify_command(
    bundle: BundleArgument,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    as_json: JsonOption = False,
) -> None:
    """Replay the golden rollouts: logit error, token agreement, PSNR."""
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.tables import verify_table
    from fewstep.runtime.verify import verify

    with Generator.open(bundle, backend=backend, device=device, precision=precision) as generator:
        report = verify(generator)
    show(report.as_dict(), [verify_table(report)], as_json)
    if not report.passed:
        raise typer.Exit(1)
