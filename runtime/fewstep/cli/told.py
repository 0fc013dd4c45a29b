"""What a run that makes pictures says of itself when it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewstep.cli.common import errors

if TYPE_CHECKING:
    from fewstep.cli.order import Order
    from fewstep.cli.produce import Made, Target
    from fewstep.runtime.generator import Generator

_TOLD = 2.0  # seconds of compilation; loading what is kept takes less


def summary_of(
    generator: Generator, order: Order, complete: dict[str, Any], made: Made
) -> dict[str, Any]:
    """What ``--json`` prints."""
    asked: dict[str, Any] = {"texts": list(order.conditions)}
    if order.prompts is not None:
        asked = {"prompts": [order.prompts[row] for row in order.conditions]}
        asked["negative"] = order.negative
    elif order.text is None:
        asked = {"class_ids": list(order.conditions), "classes": list(order.labels)}
    return {
        "files": [str(path) for path in made.files],
        "images": made.images,
        "kept": made.kept,
        **asked,
        "seeds": list(order.seeds) if made.kept else made.seeds,
        "settings": complete,
        "backend": generator.backend,
        "device": generator.device.name,
        "precision": generator.precision,
        "passed_over": generator.passed_over,
        "notes": [*generator.notes, *made.notes],
        "timings_ms": made.timings_ms,
    }


def compiled(generator: Generator) -> float:
    """Compile the CPU's kernels where that was not done before; seconds that it took."""
    if generator.device.name != "cpu":
        return 0.0
    from fewstep.runtime.kernels.cpu import warm
    from fewstep.runtime.program import Launch

    family, model = generator.family, generator.model
    programs = (family.program(model, key) for key in family.corners(model, 1))
    wanted = {op.kernel for each in programs for op in each.different() if isinstance(op, Launch)}
    with errors.status("compiling the kernels (once; they are kept)"):
        return warm(wanted)


def line_of(generator: Generator, made: Made, target: Target, compiled: float) -> str:
    """What came about, in one line."""
    if not made.images:
        return f"nothing left to make: all {made.kept:,} images are in {target.path}"
    images = f"{made.images:,} image{'s' if made.images != 1 else ''}"
    best = f", each the best of {target.best_of}," if target.best_of > 1 else ""
    kept = f" ({made.kept:,} were there already)" if made.kept else ""
    once = f", after {compiled:.1f} s to compile the kernels once" if compiled > _TOLD else ""
    total = made.timings_ms["total"]
    taken = f"{total:.0f} ms" if total < 10_000 else f"{total / 1e3:.1f} s"
    how = f"{generator.backend} in {generator.precision} on {generator.device.name}"
    places = [target.path] + ([] if target.trace is None else [target.trace])
    return f"{images}{best} in {taken} with {how}{once}{kept} → {', '.join(map(str, places))}"
