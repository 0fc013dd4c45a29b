"""``fewstep calibrate``: quantization and policy tuning."""

from __future__ import annotations

import typer

from fewstep.cli import calibrate_policy, calibrate_quantize
from fewstep.cli.settings import SettingsCommand

app = typer.Typer(
    help="Calibrate a bundle on rollouts of its own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("policy")(calibrate_policy.policy_command)
app.command("quantize", cls=SettingsCommand)(calibrate_quantize.quantize_command)
