"""``fewstep calibrate``: a small decoder, policy tuning, presets, quantization."""

from __future__ import annotations

from fewstep.cli import calibrate_decoder, calibrate_policy, calibrate_presets, calibrate_quantize
from fewstep.cli.app import App
from fewstep.cli.settings import RepeatedSettingsCommand, SettingsCommand, StartCommand

app = App(help="Calibrate a bundle on rollouts of its own.")
app.command("decoder", cls=calibrate_decoder.RolloutCommand)(calibrate_decoder.decoder_command)
app.command("policy", cls=StartCommand)(calibrate_policy.policy_command)
app.command("presets", cls=RepeatedSettingsCommand)(calibrate_presets.presets_command)
app.command("quantize", cls=SettingsCommand)(calibrate_quantize.quantize_command)
