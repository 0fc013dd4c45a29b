"""``fewstep calibrate policy``: options → training → tuned policy in the bundle."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewstep import __version__
from fewstep.calibration.added_graph import half
from fewstep.calibration.policy import state, workers
from fewstep.calibration.policy.data import RealImages, read_images
from fewstep.calibration.policy.environment import Environment
from fewstep.calibration.policy.features import open_network
from fewstep.calibration.policy.imitation import imitate, table_of
from fewstep.calibration.policy.judge import ExportedJudge, export_judge
from fewstep.calibration.policy.networks import SIZES, Shape, actor_of, new_actor, new_critic
from fewstep.calibration.policy.options import PolicyOptions, Start, checked, smoothed
from fewstep.calibration.policy.plots import draw
from fewstep.calibration.policy.state import Log, Row, TrainingState
from fewstep.calibration.policy.store import add_policy
from fewstep.calibration.policy.training import Training
from fewstep.export.models.policy import FixedPolicy
from fewstep.export.tuned import TunedPolicy, save_tuned
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import CalibrationError, OutputError
from fewstep.runtime.families import family_of, quantized_graphs
from fewstep.runtime.files import replacing, require_writable, require_writable_bundle
from fewstep.runtime.generator import Generator
from fewstep.runtime.policies import PolicyInfo, PolicyTuning, policies_of, rules_of
from fewstep.runtime.progress import Progress, no_progress

_TOOLS = ("torch", "onnx", "numpy")
HISTORY = "history.json"
_IMITATED_PAIRS = 64


@dataclass(frozen=True)
class Tuned:
    """What came of a tuning run: the policy's name and record, its history, and its files.

    ``judge_bytes``: of the judge that was kept with it, if one was. ``engines``: whether the bundle
    has engines, to which those of the new graph are to be built.
    """

    name: str
    info: PolicyInfo
    history: list[Row]
    work: Path
    judge_bytes: int | None
    engines: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "info": self.info.model_dump(mode="json"),
            "history": self.history,
            "work": str(self.work),
            "judge_bytes": self.judge_bytes,
        }


def tune(
    options: PolicyOptions,
    *,
    command: str = "",
    progress: Progress = no_progress,
    log: Log = lambda row: None,
) -> Tuned:
    """Tune a policy of a bundle and add it as a new one.

    Run again after an interruption, it goes on from its last checkpoint.

    Args:
        options: what is asked for.
        command: what was typed, for the record.
        progress: called with what is being done.
        log: called with the metrics of every update, those resumed from included.

    Raises:
        CalibrationError: data or options that do not fit, or a training that broke.
        BundleError: no policy in the bundle, or damage.
        EngineError: the backend refuses a graph.
        ExportError: a new graph does not compute what its network does.
        MissingDependencyError: a package of the extra ``policy`` is not installed.
        OutputError: bundle or work folder cannot be written.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    bundle = Bundle.read(options.bundle)
    start = checked(options, bundle)
    bundle, name = smoothed(bundle, start.policy, options.smoothing), start.name
    folder = bundle.path.resolve()
    work = options.work or folder.with_name(f"{folder.name}.{name}")
    with workers.joined():
        if workers.rank() == 0:
            _require_places(bundle.path, work)
        progress("reading images", 0.0)
        real = read_images(options.data, bundle.manifest.model, options.rollouts)
        with _generator(bundle, options) as generator:
            if workers.rank() == 0:
                work.mkdir(parents=True, exist_ok=True)
            workers.wait()
            progress("preparing features, reward and networks", 0.0)
            training = _training(options, bundle, generator, real, start, work)
            backend, precision = generator.backend, generator.precision
            with _logged(work, bundle, start.steps) as write:

                def row_done(row: Row) -> None:
                    write(row)
                    log(row)
                    progress("tuning the policy", row["update"] / options.updates)

                progress("tuning the policy", 0.0)
                reached = training.run(row_done)
        info = _info(options, bundle, real, reached, command, (backend, precision), start)
        judge = None
        if workers.rank() == 0:
            progress("adding the policy to the bundle", 0.0)
            actor, file = half(training.best_actor()), work / f"{name}.safetensors"
            save_tuned(file, TunedPolicy(name, actor, info, bundle.manifest.model.kind))
            if options.keep_judge:
                judge = _judge(options, training, real, name)
            _add(bundle, name, actor, info, file, judge)
        workers.wait()
    size = None if judge is None else len(judge.content)
    return Tuned(name, info, reached.history, work, size, bool(bundle.manifest.engines))


def _add(
    bundle: Bundle,
    name: str,
    actor: nn.Module,
    info: PolicyInfo,
    file: Path,
    judge: ExportedJudge | None,
) -> None:
    """Add the policy to the bundle as it is after the training, and the judge if there is one.

    Raises:
        CalibrationError: it does not belong into the bundle any more.
        OutputError: the bundle cannot be written; the policy is kept in ``file``.
    """
    try:
        with Bundle.locked(bundle.path) as now:
            _require_same(bundle, now, name, file)
            changed = add_policy(now, name, actor, info)
            if judge is not None:
                changed.update(
                    {judge.info.graph.file: judge.content}, judge=judge.info.model_dump()
                )
    except OutputError as error:
        raise OutputError(f"{error}; the policy is kept in {file}") from error


def _judge(
    options: PolicyOptions, training: Training, real: RealImages, name: str
) -> ExportedJudge:
    """The discriminator after the last update."""
    return export_judge(
        training.judge(), real, policy=name, features=options.features, updates=options.updates
    )


def _require_same(bundle: Bundle, now: Bundle, name: str, file: Path) -> None:
    """Raise ``CalibrationError`` unless the policy still belongs into the bundle."""
    graphs = quantized_graphs(bundle)
    other = [each for each in graphs if now.graph_sha256(each) != bundle.graph_sha256(each)]
    if name in now.manifest.graphs or other:
        what = f"has another {other[0]} by now" if other else f"has a policy '{name}' by now"
        raise CalibrationError(
            f"{bundle.path} {what}; the policy is kept in {file}: export the bundle with it "
            "(fewstep export --tuned-policy)"
        )


def _require_places(bundle: Path, work: Path) -> None:
    """Raise ``OutputError`` unless the bundle and files in the work folder can be written."""
    require_writable_bundle(bundle)
    try:
        require_writable(work / HISTORY)
    except OutputError as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        raise OutputError(f"cannot write {work}: {reason}; choose another --work") from error


def _generator(bundle: Bundle, options: PolicyOptions) -> Generator:
    device = options.device
    if workers.world() > 1 and device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return Generator.open(
        bundle,
        backend=options.backend,
        device=device,
        precision=options.precision,
        max_batch=options.batch,
        threads=options.threads,
    )


def _training(
    options: PolicyOptions,
    bundle: Bundle,
    generator: Generator,
    real: RealImages,
    start: Start,
    work: Path,
) -> Training:
    signature = {
        **options.signature(),
        **start.settings,
        **_hashes(bundle, generator.precision),
        "steps": start.steps,
        "data_sha256": real.sha256,
        "policy_sha256": bundle.graph_sha256(start.policy),
        "size_sha256": bundle.graph_sha256(start.size_of),
        "backend": generator.backend,
        "precision": generator.precision,
        "processes": workers.world(),
    }
    resumed = None if options.restart else state.load(work, signature)
    _require_agreement(0 if resumed is None else resumed[0].update, work)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        actor, teacher, critic = _networks(options, bundle, start)
    environment = Environment(generator, start.policy, start.steps)
    if teacher is not None and resumed is None:
        _imitate(actor, teacher, environment, real, options)
    return Training(
        options,
        bundle.manifest.model,
        environment,
        actor,
        critic,
        real,
        open_network(options.features, max(bundle.manifest.model.image_size)),
        work,
        signature,
    )


def _require_agreement(update: int, work: Path) -> None:
    """Raise ``CalibrationError`` unless all processes found the same checkpoint."""
    if len({int(each) for each in workers.gathered(torch.tensor([update]))}) > 1:
        raise CalibrationError(
            f"{work} holds other checkpoints on other machines; choose a --work folder that all "
            "of them share"
        )


def _hashes(bundle: Bundle, precision: str) -> dict[str, str]:
    """What the graphs are that images come from, the policies apart."""
    graphs = [each for each in bundle.manifest.graphs if each not in policies_of(bundle)]
    return {f"{each}_sha256": bundle.graph_sha256(each, precision) for each in graphs}


def _imitate(
    actor: nn.Module,
    teacher: nn.Module,
    environment: Environment,
    real: RealImages,
    options: PolicyOptions,
) -> None:
    count = options.rollouts
    if isinstance(teacher, FixedPolicy):  # it tells no images apart, so few of them will do
        count = min(count, _IMITATED_PAIRS)
    seeds = [int(each) for each in np.random.default_rng(options.seed).integers(2**63, size=count)]
    imitate(actor, teacher, environment, real.conditions(0, count), seeds, options.seed)


def _networks(
    options: PolicyOptions, bundle: Bundle, start: Start
) -> tuple[nn.Module, nn.Module | None, nn.Module]:
    """Actor, what it is to imitate first, and critic."""
    shape = Shape.of(bundle.graph(start.policy))
    teacher: nn.Module | None = None
    sizes = _sizes(bundle, start.size_of)
    critic = new_critic(shape, sizes)
    if options.adaptive and options.start in (None, start.policy):
        former = actor_of(bundle, start.policy)
        if former.sizes == sizes:
            return former, None, critic
        teacher = former
    elif start.schedule is not None:
        model = bundle.manifest.model
        teacher = table_of(rules_of(bundle).actions(model, start.policy, start.schedule))
    actor = new_actor(shape, start.steps, adaptive=options.adaptive, sizes=sizes)
    return actor, teacher, critic


def _sizes(bundle: Bundle, name: str) -> Mapping[str, Any]:
    """Those of a policy, or of none in particular: a table has no size to take after."""
    try:
        return actor_of(bundle, name).sizes
    except CalibrationError:
        return SIZES


def _info(
    options: PolicyOptions,
    bundle: Bundle,
    real: RealImages,
    reached: TrainingState,
    command: str,
    engines: tuple[str, str],
    start: Start,
) -> PolicyInfo:
    graph = family_of(bundle.manifest.model.kind).quantized[0]
    assert reached.best is not None
    tuning = PolicyTuning(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
        command=command,
        tools={"python": platform.python_version(), "fewstep": __version__}
        | {each: importlib.metadata.version(each) for each in _TOOLS},
        adaptive=options.adaptive,
        reward=options.reward,
        features=options.features,
        backend=engines[0],
        precision=engines[1],  # type: ignore[arg-type]
        transformer_sha256=bundle.graph_sha256(graph, engines[1]),
        images=len(real.images),
        data_sha256=real.sha256,
        rollouts=options.rollouts,
        updates=reached.best["update"],
        seed=options.seed,
        frechet_distance=reached.best["frechet_distance"],
    )
    own = {"steps": start.steps, "tuning": tuning, "untrained_seed": None}
    return policies_of(bundle)[start.policy].model_copy(update=own)


@contextlib.contextmanager
def _logged(work: Path, bundle: Bundle, steps: int) -> Iterator[Log]:
    """Write rows to TensorBoard and to ``history.json``, and draw them at every evaluation.

    A resumed training reports its former rows again, so its logs are begun anew.
    """
    if workers.rank() != 0:
        yield lambda row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    rules = rules_of(bundle)
    hand_made = rules.hand_made(bundle.manifest.model, steps)
    events, rows = work / "tensorboard", list[Row]()
    for old in events.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(events)) as writer:

        def log(row: Row) -> None:
            rows.append(row)
            for name, value in row.items():
                if isinstance(value, float):
                    writer.add_scalar(name, value, row["update"])
            with replacing(work / HISTORY) as temporary:
                temporary.write_text(json.dumps(rows))
            if "frechet_distance" in row:
                draw(rows, rules.parameters, hand_made, work)

        yield log
