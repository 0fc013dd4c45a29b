"""Several threads and one Generator: requests wait or are refused, closing waits."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fewstep.runtime.devices import Buffer
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.errors import DeviceError
from fewstep.runtime.generator import Generator

_DOC = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


class Held:
    """Holds every run of a generator's decoder until it is let go."""

    def __init__(self, generator: Generator) -> None:
        self.reached, self.let_go = threading.Event(), threading.Event()
        bind = generator.engines["decoder"].bind

        def held(bindings: Mapping[str, Buffer]) -> BoundEngine:
            bound = bind(bindings)
            return replace(bound, run=lambda: self._wait(bound))

        generator.engines["decoder"].bind = held  # type: ignore[method-assign]

    def _wait(self, bound: BoundEngine) -> None:
        self.reached.set()
        assert self.let_go.wait(60)
        bound.run()


def test_parallel_requests_wait_for_each_other(tiny_bundle: Path) -> None:
    with Generator.open(tiny_bundle, threads=1) as generator:
        expected = [generator.generate(class_ids=[i % 5], seed=i, steps=3).images for i in range(8)]

        def answer(i: int) -> np.ndarray:
            return generator.generate(class_ids=[i % 5], seed=i, steps=3).images

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(answer, range(8)))
    assert all((one == other).all() for one, other in zip(found, expected, strict=True))


def test_without_waiting_the_second_is_refused(tiny_bundle: Path) -> None:
    with Generator.open(tiny_bundle, threads=1, wait=False) as generator:
        held = Held(generator)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(generator.generate, class_ids=[0], steps=1)
            assert held.reached.wait(60)
            with pytest.raises(DeviceError, match="in use by another thread; open it with wait"):
                generator.generate(class_ids=[0], steps=1)
            held.let_go.set()
            assert first.result().images.shape == (1, 8, 8, 3)


@pytest.mark.parametrize("wait", [True, False])
def test_closing_waits_for_the_request_that_is_served(wait: bool, tiny_bundle: Path) -> None:
    generator = Generator.open(tiny_bundle, threads=1, wait=wait)
    held = Held(generator)
    with ThreadPoolExecutor(3) as pool:
        served = pool.submit(generator.generate, class_ids=[0], steps=1)
        assert held.reached.wait(60)
        closed = [pool.submit(generator.close) for _ in range(2)]
        assert not any(each.done() for each in closed)
        held.let_go.set()
        assert served.result().images.shape == (1, 8, 8, 3)
        assert [each.result() for each in closed] == [None, None]
    with pytest.raises(DeviceError, match="closed"):
        generator.generate(class_ids=[0], steps=1)


def test_a_request_within_a_request_is_refused_and_does_not_wait_for_itself(
    tiny_bundle: Path,
) -> None:
    with Generator.open(tiny_bundle, threads=1) as generator:
        for use in (lambda: generator.generate(class_ids=[0], steps=1), generator.close):

            def again(step: int, preview: object, use: Callable[[], object] = use) -> None:
                use()

            with pytest.raises(DeviceError, match="in the middle of a request of this thread"):
                generator(0, steps=2, callback=again)
        assert generator.generate(class_ids=[0], steps=1).images.shape == (1, 8, 8, 3)


def test_a_request_that_fails_leaves_the_turn_to_the_next(tiny_bundle: Path) -> None:
    def stop(step: int, preview: object) -> None:
        raise KeyError(step)

    with Generator.open(tiny_bundle, threads=1) as generator:
        with pytest.raises(KeyError):
            generator(0, steps=2, callback=stop)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(generator.generate, class_ids=[0], steps=1)
            assert other.result(60).images.shape == (1, 8, 8, 3)


def test_the_recipe_for_servers_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    """The code of docs/serving.md that needs no web framework, on several threads at once."""
    blocks = re.findall(r"```python\n(.*?)```", _DOC.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(
        compile(blocks[0].replace('"bundle"', repr(str(tiny_bundle))), "serving.md", "exec"), names
    )
    serve, shut_down = names["png"], names["shut_down"]
    assert callable(serve) and callable(shut_down)
    with ThreadPoolExecutor(4) as clients:
        images = list(clients.map(lambda i: serve(i % 5, i), range(6)))
    assert all(image.startswith(b"\x89PNG") for image in images)
    shut_down()
    for block in blocks[1:]:
        compile(block, "serving.md", "exec")
