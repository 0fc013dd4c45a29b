"""What ``fewstep calibrate policy`` is asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.calibration.policy.features import DEFAULT
from fewstep.calibration.policy.rewards import ADVERSARIAL, check_reward
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, CalibrationError, RequestError, choose
from fewstep.runtime.examples import example_request
from fewstep.runtime.families import family_of, model_of
from fewstep.runtime.policies import PolicyRules, policies_of, policy_for, rules_of
from fewstep.runtime.settings import settings_of

SCRATCH = "scratch"
SMOOTHING = "smoothing"  # the field of a family's PolicyInfo, where it has one
_NAME = re.compile(r"policy[a-z0-9-]*")
_APART = (
    *("bundle", "data", "work", "restart", "batch", "device", "threads", "settings"),
    "keep_judge",
)
"""Options that another run of the same training may change, and those that a :class:`Start` says
in words of its own."""


@dataclass(frozen=True)
class PolicyOptions:
    """Options of a tuning run; the defaults suit a small model and one machine.

    ``steps``: of every generation, ``None`` where the family has but one number of them.
    ``rollouts`` per update, in pairs, generated ``batch`` at a time with engines of ``backend`` and
    ``precision`` on ``device`` and ``threads`` of the CPU (0: every core). ``reward``:
    adversarial, classifier or feature-distance. ``adaptive``: per image, or one action per step.
    ``deviation``: of the actions drawn, first and last, falling in a straight line. ``start``: a
    policy of the bundle, ``scratch``, a fixed schedule of its family (shaped by ``settings``, or as
    the bundle's defaults say), or ``None`` for the policy that fits the steps best.
    ``size_of``: the policy of the bundle whose size the new one has, ``None`` for that which it
    stands in for. ``smoothing``: how much of the actions before a step counts, 0 … 1, ``None`` for
    that of the policy it stands in for. ``keep_judge``: put the discriminator into the bundle.
    ``name``: of the new policy. ``work``: folder of checkpoints and logs. Every
    ``evaluate_every`` updates, ``evaluation_images`` are made.
    """

    bundle: Path
    data: Path
    steps: int | None = None
    updates: int = 80
    rollouts: int = 160
    batch: int = 32
    reward: str = ADVERSARIAL
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
    settings: Mapping[str, Any] = field(default_factory=dict)
    size_of: str | None = None
    smoothing: float | None = None
    keep_judge: bool = False
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
        if self.smoothing is not None and not 0 <= self.smoothing < 1:
            raise CalibrationError(
                f"--smoothing must be at least 0 and below 1, got {self.smoothing}"
            )
        if self.keep_judge and self.reward != ADVERSARIAL:
            raise CalibrationError(
                "--keep-judge keeps the discriminator, which only --reward adversarial trains; got "
                f"--reward {self.reward}"
            )
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise CalibrationError(
                "a policy's name is 'policy' and small letters, digits or hyphens, such as "
                f"policy-mine, got '{self.name}'"
            )

    def signature(self) -> dict[str, Any]:
        """Options that decide the result, as plain data."""
        kept = {key: value for key, value in asdict(self).items() if key not in _APART}
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()
        }

    def deviation_at(self, update: int) -> float:
        """Standard deviation of the actions in an update, 0 … ``updates − 1``."""
        first, last = self.deviation
        return first + (last - first) * update / max(1, self.updates - 1)


@dataclass(frozen=True)
class Start:
    """What a tuning run begins with, checked against its bundle.

    ``policy``: the one to stand in for. ``name``: of the new one. ``steps``: of every generation.
    ``schedule``: parameters ``[T, A]`` that the policy is to start as, or ``None``. ``settings``:
    what shaped them, as plain data. ``size_of``: the policy whose size the new one has.
    """

    policy: str
    name: str
    steps: int
    schedule: npt.NDArray[np.float32] | None
    settings: Mapping[str, Any]
    size_of: str


def checked(options: PolicyOptions, bundle: Bundle) -> Start:
    """What to begin with, the bundle being fit for it.

    Raises:
        BundleError: no policy graph.
        CalibrationError: unknown start or policy to take the size of, a name that is taken, not
            the bundle's number of steps, or smoothing where its family has none.
        RequestError: steps or settings that the bundle cannot do, or no unconditional text.
    """
    rules, policies = rules_of(bundle), policies_of(bundle)
    if not policies:
        gives = family_of(bundle.manifest.model.kind).quantized[0]
        raise BundleError(
            f"{bundle.path} has no policy graph, and its {gives} gives no features; export it "
            "again with one: fewstep export … --policy FILE, or with --untrained-policy"
        )
    if options.smoothing is not None and SMOOTHING not in rules.Info.model_fields:
        kind = bundle.manifest.model.kind
        raise CalibrationError(
            f"{bundle.path} is of the family {kind}, whose policies have no smoothing: leave out "
            "--smoothing"
        )
    steps = _steps(options, rules, bundle)
    fitting = policy_for(policies, steps)
    assert fitting is not None
    following = settings_of(bundle.manifest.model.defaults, rules.settings(fitting, steps))
    example_request(model_of(bundle), following)
    starts = (SCRATCH, *policies, *rules.schedules)
    if options.start is not None and options.start not in starts:
        raise CalibrationError(choose("policy or schedule to start from", options.start, starts))
    if options.size_of is not None and options.size_of not in policies:
        raise CalibrationError(choose("policy to take the size of", options.size_of, policies))
    if not options.adaptive and options.start in policies:
        raise CalibrationError(
            f"a fixed policy cannot start as '{options.start}', which tells images apart; start it "
            "as a fixed schedule, or from scratch"
        )
    schedule, settings = _schedule(options, rules, bundle, steps)
    name = _new_name(options, steps, (*policies, *rules.reserved))
    policy = options.start if options.start and options.start in policies else fitting
    return Start(policy, name, steps, schedule, settings, options.size_of or policy)


def smoothed(bundle: Bundle, policy: str, smoothing: float | None) -> Bundle:
    """The bundle as the training sees it: actions of this policy are smoothed so.

    Nothing is written. With ``None`` it is the same bundle.
    """
    if smoothing is None:
        return bundle
    manifest, policies = bundle.manifest, policies_of(bundle)
    changed = policies[policy].model_copy(update={SMOOTHING: smoothing})
    model = manifest.model.model_copy(update={"policies": {**policies, policy: changed}})
    return Bundle(bundle.path, manifest.model_copy(update={"model": model}))


def _steps(options: PolicyOptions, rules: PolicyRules, bundle: Bundle) -> int:
    """The number of steps that was asked for, or the only one that there is."""
    only = rules.steps(bundle.manifest.model)
    if only is None:
        if options.steps is None:
            raise CalibrationError("say how many steps to tune the policy for: --steps N")
        return options.steps
    if options.steps not in (None, only):
        raise CalibrationError(
            f"{bundle.path} generates in {only} steps, always: got --steps {options.steps}, leave "
            "it out"
        )
    return only


def _schedule(
    options: PolicyOptions, rules: PolicyRules, bundle: Bundle, steps: int
) -> tuple[npt.NDArray[np.float32] | None, dict[str, Any]]:
    """Parameters of the fixed schedule to start as, if it is one, and the settings given for it."""
    model, given = bundle.manifest.model, options.settings
    for name in given:
        if name not in rules.schedule_settings:
            raise RequestError(
                choose("setting of a schedule to start as", name, rules.schedule_settings)
            )
    if options.start not in rules.schedules:
        if given:
            raise CalibrationError(
                f"{', '.join(given)} belong to a fixed schedule to start from: name it with --start"
            )
        return None, {}
    found = rules.schedule(model, options.start, steps, given)
    plain = settings_of(model.defaults, given).model_dump(mode="json")
    return found, {name: plain[name] for name in given}


def _new_name(options: PolicyOptions, steps: int, taken: Collection[str]) -> str:
    if options.name in taken:
        raise CalibrationError(
            f"{options.bundle} has or reserves the name '{options.name}'; choose another --name"
        )
    if options.name is not None:
        return options.name
    base, count = f"policy-{steps}-steps", 1
    while (name := base if count == 1 else f"{base}-{count}") in taken:
        count += 1
    return name
