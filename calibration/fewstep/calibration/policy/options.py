"""What ``fewstep calibrate policy`` is asked for."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewstep.calibration.policy.features import DEFAULT
from fewstep.calibration.policy.rewards import check_reward
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, CalibrationError, choose
from fewstep.runtime.families.masked.model import MaskedModel, masked_model
from fewstep.runtime.families.masked.request import check_settings, schedule_of
from fewstep.runtime.families.masked.schedule import (
    EXPORTED_POLICY,
    MASK_RATIOS,
    POLICY,
    Schedule,
)
from fewstep.runtime.families.masked.settings import RAMPS
from fewstep.runtime.settings import Ramp, settings_of

SCRATCH = "scratch"
_NAME = re.compile(r"policy[a-z0-9-]*")
_PLACES = ("bundle", "data", "work", "restart", "batch", "device", "threads")
"""Options that another run of the same training may change."""


@dataclass(frozen=True)
class PolicyOptions:
    """Options of a tuning run; the defaults suit a small model and one machine.

    ``rollouts`` per update, in pairs, generated ``batch`` at a time with engines of ``backend`` and
    ``precision`` on ``device`` and ``threads`` of the CPU (0: every core). ``reward``:
    adversarial, classifier or feature-distance. ``adaptive``: per image, or one action per step.
    ``deviation``: of the actions drawn, first and last, falling in a straight line. ``start``: a
    policy of the bundle, ``scratch``, a fixed schedule (with ``guidance`` and temperatures, or the
    bundle's), or ``None`` for the policy that ``--schedule policy`` takes.
    ``name``: of the new policy. ``work``: folder of checkpoints and logs. Every
    ``evaluate_every`` updates, ``evaluation_images`` are made.
    """

    bundle: Path
    data: Path
    steps: int
    updates: int = 80
    rollouts: int = 160
    batch: int = 32
    reward: str = "adversarial"
    adaptive: bool = True
    features: str = DEFAULT
    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    learning_rate: float = 1e-4
    discriminator_learning_rate: float = 3e-4
    deviation: tuple[float, float] = (0.4, 0.1)
    policy_epochs: int = 5
    discriminator_epochs: int = 5
    evaluate_every: int = 10
    evaluation_images: int = 1_000
    seed: int = 0
    start: str | None = None
    guidance: Ramp | None = None
    sampling_temperature: Ramp | None = None
    masking_temperature: Ramp | None = None
    name: str | None = None
    work: Path | None = None
    restart: bool = False

    def __post_init__(self) -> None:
        check_reward(self.reward)
        for what, least in (
            ("updates", 1),
            ("rollouts", 2),
            ("batch", 1),
            ("policy_epochs", 1),
            ("discriminator_epochs", 1),
            ("evaluate_every", 1),
            ("evaluation_images", 2),
            ("seed", 0),
            ("threads", 0),
        ):
            if getattr(self, what) < least:
                option = what.replace("_", "-")
                raise CalibrationError(
                    f"--{option} must be at least {least}, got {getattr(self, what)}"
                )
        positive = (self.learning_rate, self.discriminator_learning_rate, *self.deviation)
        if not all(math.isfinite(each) and each > 0 for each in positive):
            raise CalibrationError(
                f"learning rates and the actions' deviation must be above 0, got {positive}"
            )
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise CalibrationError(
                f"a policy's name is 'policy' and small letters, digits or hyphens, such as "
                f"policy-{self.steps}-steps, got '{self.name}'"
            )

    def signature(self) -> dict[str, Any]:
        """Every option that decides the result, as plain data."""
        kept = {key: value for key, value in asdict(self).items() if key not in _PLACES}
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()
        }

    def deviation_at(self, update: int) -> float:
        """Standard deviation of the actions in an update, 0 … ``updates − 1``."""
        first, last = self.deviation
        return first + (last - first) * update / max(1, self.updates - 1)


def schedule_to_start_from(options: PolicyOptions, model: MaskedModel) -> Schedule | None:
    """The fixed schedule that the policy is to start as, or ``None``.

    Raises:
        RequestError: temperatures or guidance below 0.
    """
    if options.start not in MASK_RATIOS:
        return None
    given = {name: getattr(options, name) for name in RAMPS}
    given |= {"schedule": options.start, "steps": options.steps}
    found = schedule_of(model, settings_of(model.defaults, given))
    assert isinstance(found, Schedule)
    return found


def checked(options: PolicyOptions, bundle: Bundle) -> tuple[str, str]:
    """Names of the policy to stand in for and of the new one, the bundle being fit for it.

    Raises:
        BundleError: no policy graph.
        CalibrationError: unknown start, or a name that is taken.
        RequestError: a number of steps that the bundle cannot do, or no unconditional text.
    """
    model = masked_model(bundle)
    if not model.policies:
        raise BundleError(
            f"{bundle.path} has no policy graph, and its transformer gives no features; export it "
            "again with one: fewstep export adanat … --policy FILE, or with --untrained-policy"
        )
    check_settings(model, settings_of(model.defaults, {"steps": options.steps, "schedule": POLICY}))
    starts = (SCRATCH, *model.policies, *MASK_RATIOS)
    if options.start is not None and options.start not in starts:
        raise CalibrationError(choose("policy or schedule to start from", options.start, starts))
    if not options.adaptive and options.start in model.policies:
        raise CalibrationError(
            f"a fixed policy cannot start as '{options.start}', which tells images apart; start it "
            "as a fixed schedule, or from scratch"
        )
    given = [name for name in RAMPS if getattr(options, name) is not None]
    if given and options.start not in MASK_RATIOS:
        raise CalibrationError(
            f"{', '.join(given)} belong to a fixed schedule to start from: name it with --start"
        )
    stand_in = model.policy_for(options.steps)
    assert stand_in is not None
    if options.start in model.policies:
        stand_in = str(options.start)
    return stand_in, _new_name(options, list(model.policies))


def _new_name(options: PolicyOptions, taken: list[str]) -> str:
    if options.name in (*taken, POLICY, EXPORTED_POLICY):
        raise CalibrationError(
            f"{options.bundle} has or reserves the name '{options.name}'; choose another --name"
        )
    if options.name is not None:
        return options.name
    base, count = f"policy-{options.steps}-steps", 1
    while (name := base if count == 1 else f"{base}-{count}") in taken:
        count += 1
    return name
