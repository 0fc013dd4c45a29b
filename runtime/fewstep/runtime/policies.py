"""Policies: networks that set every step of a decode, as far as the families share them.

A policy is a graph of a bundle: ``features [B, N, C]`` float32 (N tokens on a square grid of even
side) and ``step [B]`` int32 → ``action [B, A]`` float32, raw. The program of its family turns the
actions into parameters of the step, its decision ``parameters [T, B, A]``, and may add a fixed
schedule to them, which a zero action then follows.

The model's description lists policies as ``policies``: a :class:`PolicyInfo` by graph name, oldest
first. Golden rollouts of a policy have the name of its graph. All else that tuning needs is in
:class:`PolicyRules`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from fewstep.runtime.errors import BundleError
from fewstep.runtime.families import family_of, kinds
from fewstep.runtime.records import Precision, Sha256, Strict

if TYPE_CHECKING:
    from fewstep.runtime.bundle import Bundle

PolicyName = Annotated[str, Field(pattern=r"^policy[a-z0-9-]*$")]
"""Of a policy graph; "policy" in front keeps it apart from other graphs and schedules."""


POLICY = "policy"
"""The schedule name that hands every decision to the policy network that fits best."""

EXPORTED_POLICY = "policy-exported"
"""The schedule name of the policy that was exported, whose graph is called ``policy``."""


def policy_schedule(graph: str) -> str:
    """The schedule name that chooses the policy with this graph, whatever others there are."""
    return EXPORTED_POLICY if graph == POLICY else graph


class PolicyTuning(Strict):
    """How ``fewstep calibrate policy`` made a policy.

    ``adaptive``: per image, or one action per step. ``backend``, ``precision``: of the engines it
    was tuned on, ``transformer_sha256``: of the first graph of theirs that the family quantizes.
    ``images``, ``data_sha256``: of the real images. ``updates`` went into the weights kept;
    ``frechet_distance`` is theirs, before they were rounded to half precision, on tuning seeds.
    """

    created: str
    command: str
    tools: dict[str, str]
    adaptive: bool
    reward: str
    features: str
    backend: str
    precision: Precision
    transformer_sha256: Sha256
    images: PositiveInt
    data_sha256: Sha256
    rollouts: PositiveInt
    updates: int = Field(ge=0)
    seed: int
    frechet_distance: float


class PolicyInfo(Strict):
    """One policy network, under the name of its graph; families add what their programs need.

    ``steps``: the number it was tuned for, if known. ``untrained_seed``: what the weights were
    drawn from, if nothing trained them.
    """

    steps: PositiveInt | None = None
    tuning: PolicyTuning | None = None
    untrained_seed: int | None = None


class PolicyRules(ABC):
    """What ``fewstep calibrate policy`` has to know of a family's policies.

    ``Info``: describes one in the manifest. A tuned policy gets the fields of the one that it
    stood in for; only those of :class:`PolicyInfo` are its own.
    ``parameters``: names, for people, of the A columns of the decision ``parameters``, in the order
    of the actions.
    ``schedules``: names of fixed schedules that a policy can start as, the first the usual one.
    ``schedule_settings``: settings of a request that shape such a schedule; they become options of
    the command, beside ``--start``.
    ``reserved``: names that no new policy may have.
    """

    Info: type[PolicyInfo]
    parameters: tuple[str, ...]
    schedules: tuple[str, ...]
    schedule_settings: tuple[str, ...]
    reserved: tuple[str, ...] = (POLICY, EXPORTED_POLICY)

    def steps(self, model: Any) -> int | None:
        """The number of steps T of every decode, or ``None`` where requests choose it."""
        return None

    @abstractmethod
    def settings(self, policy: str, steps: int) -> dict[str, Any]:
        """Settings of a request that follows this policy, in ``steps`` steps."""

    @abstractmethod
    def schedule(
        self, model: Any, name: str, steps: int, given: Mapping[str, Any]
    ) -> npt.NDArray[np.float32]:
        """Parameters ``[T, A]`` of a fixed schedule.

        Args:
            model: the manifest's description, whose defaults fill what is not given.
            name: one of ``schedules``.
            steps: T.
            given: values of ``schedule_settings`` by name, as Python or as text.

        Raises:
            RequestError: values that the family or this number of steps does not allow.
        """

    @abstractmethod
    def actions(
        self, model: Any, policy: str, parameters: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Raw actions ``[T, A]`` that give ``parameters [T, A]``: what the program makes of a
        policy's actions, undone.

        Args:
            model: the manifest's description.
            policy: name of the policy in it whose place the actions take.
            parameters: of a fixed schedule. What no finite action gives, such as 0 of a softplus,
                is moved to where an optimizer can reach it.
        """

    def hand_made(self, model: Any, steps: int) -> npt.NDArray[np.float32]:
        """Parameters ``[T, A]`` of the schedule that a tuned policy is drawn beside."""
        return self.schedule(model, self.schedules[0], steps, {})


def rules_of(bundle: Bundle) -> PolicyRules:
    """The rules of a bundle's family.

    Raises:
        BundleError: the family has no policies.
    """
    kind = bundle.manifest.model.kind
    rules = family_of(kind).policies
    if rules is None:
        having = ", ".join(each for each in kinds() if family_of(each).policies)
        raise BundleError(
            f"{bundle.path} is of the family {kind}, which has no policies; only {having} models do"
        )
    return rules


def policies_of(bundle: Bundle) -> Mapping[str, PolicyInfo]:
    """A bundle's policies by graph name, oldest first.

    Raises:
        BundleError: its family has no policies.
    """
    rules_of(bundle)
    model: Any = bundle.manifest.model
    found: Mapping[str, PolicyInfo] = model.policies
    return found


def policy_named(policies: Mapping[str, PolicyInfo], name: str, steps: int) -> str | None:
    """The graph of the policy that a schedule's name stands for, if it is one's.

    ``policy`` is the best for ``steps`` (:func:`policy_for`), ``policy-exported`` the one whose
    graph has the name ``policy``.
    """
    if name == POLICY:
        return policy_for(policies, steps)
    graph = POLICY if name == EXPORTED_POLICY else name
    return graph if graph in policies else None


def policy_for(policies: Mapping[str, PolicyInfo], steps: int) -> str | None:
    """The newest policy tuned for ``steps``, else for any number, else of all, if any."""
    for wanted in (steps, None):
        fitting = [name for name, info in policies.items() if info.steps == wanted]
        if fitting:
            return fitting[-1]
    return [*policies][-1] if policies else None


def described(policies: Mapping[str, PolicyInfo]) -> str:
    """The policies of a model, for people."""
    return ", ".join(map(_described, policies.items())) or "-"


def _described(named: tuple[str, PolicyInfo]) -> str:
    name, info = named
    if info.untrained_seed is not None:
        return f"{name} (untrained)"
    return name if info.steps is None else f"{name} (for {info.steps} steps)"
