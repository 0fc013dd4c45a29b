"""Choosing a backend without a GPU: the order of trying, what is refused, and whose error is told.

With engines it is tested in ``tests/cuda/test_tensorrt.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines import select
from fewstep.runtime.engines.select import Opened, Wanted, open_backend, usable_engines
from fewstep.runtime.errors import BundleError, EngineError, FewstepError, RequestError
from fewstep.runtime.records import BuildOptions, EngineInfo

_TRIED = [("tensorrt", "cuda"), ("tensorrt-rtx", "cuda")]


def _tried(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, wanted: Wanted, works: str = ""
) -> tuple[list[tuple[str, str]], Opened | FewstepError]:
    """Backends and devices in the order of trying, of which only ``works`` opens."""
    tried: list[tuple[str, str]] = []

    def fake(bundle: Bundle, wanted: Wanted, backend: str, kind: str) -> Opened:
        tried.append((backend, kind))
        if backend != works:
            raise EngineError(f"{backend} is out of order")
        nothing: Any = None
        return Opened(backend, "fp32", nothing, {})

    monkeypatch.setattr(select, "_open", fake)
    try:
        return tried, open_backend(Bundle.read(bundle), wanted)
    except FewstepError as error:
        return tried, error


@pytest.mark.parametrize(
    ("device", "last"), [("auto", "cpu"), ("cuda", "cuda")], ids=["auto", "cuda"]
)
def test_auto_tries_in_order_and_tells_the_last_error(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, device: str, last: str
) -> None:
    tried, error = _tried(monkeypatch, tiny_bundle, Wanted(device=device))
    assert tried == [*_TRIED, ("onnxruntime", last)]
    assert str(error) == "onnxruntime is out of order"


def test_auto_stops_at_the_first_that_opens_and_keeps_the_reasons(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    tried, opened = _tried(monkeypatch, tiny_bundle, Wanted(), works="tensorrt-rtx")
    assert tried == _TRIED
    assert isinstance(opened, Opened)
    assert opened.passed_over == {"tensorrt": "tensorrt is out of order"}


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_backend_by_name_is_the_only_one_tried(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, backend: str
) -> None:
    tried, error = _tried(monkeypatch, tiny_bundle, Wanted(backend), works="onnxruntime")
    assert tried == [(backend, "cuda")]
    assert str(error) == f"{backend} is out of order"


def test_auto_on_the_cpu_tries_onnxruntime_alone(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    tried, opened = _tried(monkeypatch, tiny_bundle, Wanted(device="cpu"), works="onnxruntime")
    assert tried == [("onnxruntime", "cpu")]
    assert isinstance(opened, Opened)
    assert opened.passed_over == {}


def test_tensorrt_on_the_cpu_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(RequestError, match="tensorrt needs device cuda, got cpu"):
        open_backend(Bundle.read(tiny_bundle), Wanted("tensorrt", "cpu"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("tensort", "auto"), "Did you mean 'tensorrt'?"),
        (("auto", "cuda:x"), "unknown device 'cuda:x'"),
        (("auto", "cpu:1"), "unknown device 'cpu:1'"),
        (("", "auto"), "unknown backend ''"),
    ],
)
def test_unknown_names_are_refused(names: tuple[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("?", r"\?")):
        Wanted.parse(names[0], names[1], "auto")


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("float16", r"'fp16'\? Make its graphs with: fewstep build \S+ --precision fp16$"),
        ("BFloat16", r"'bf16'\? Make its graphs with: fewstep build \S+ --precision bf16$"),
        ("float8", r"'fp8'\? Make .* with: fewstep calibrate quantize \S+ --precision fp8$"),
        ("fp23", r"expected one of: fp32, fp16, bf16, int8, fp8\. Did you mean 'fp32'\?$"),
        ("nonsense", "expected one of: fp32, fp16, bf16, int8, fp8\\.$"),
    ],
)
def test_an_unknown_precision_names_the_nearest_and_what_makes_it(
    tiny_bundle: Path, precision: str, message: str
) -> None:
    wanted = Wanted.parse("auto", "cpu", precision)
    with pytest.raises(RequestError, match=f"unknown precision '{precision}'; .*{message}"):
        open_backend(Bundle.read(tiny_bundle), wanted)


def test_the_number_of_a_gpu_is_split_off() -> None:
    wanted = Wanted.parse("auto", "cuda:3", "fp16")
    assert (wanted.device, wanted.ordinal, wanted.precision) == ("cuda", 3, "fp16")


# --- engines of a bundle


def _with_engines(path: Path, *engines: tuple[str, str, str, str]) -> Bundle:
    """A bundle that records engines (graph, precision, version, capability); no file is read."""
    infos = [
        EngineInfo(
            file="transformer.onnx",
            backend="tensorrt-rtx",
            version=version,
            graph=graph,
            precision="fp16" if precision == "fp16" else "fp32",
            graph_sha256=Bundle.read(path).graph_sha256(graph),
            compute_capabilities=(capability,),
            profiles=(),
            options=BuildOptions(max_batch=4, opt_batch=(1, 2)),
            seconds=0.0,
            peak_memory_bytes=0,
        )
        for graph, precision, version, capability in engines
    ]
    bundle = Bundle.read(path)
    fp16 = {name: graph.model_copy() for name, graph in bundle.manifest.graphs.items()}
    changes = {"engines": tuple(infos), "variants": {"fp16": fp16}}
    return Bundle(path, bundle.manifest.model_copy(update=changes))


def _all(precision: str, version: str = "1.7.1", capability: str = "8.6") -> list[Any]:
    return [(name, precision, version, capability) for name in ("transformer", "policy", "decoder")]


def test_auto_precision_is_the_one_built_last_that_runs_here(tiny_bundle: Path) -> None:
    bundle = _with_engines(tiny_bundle, *_all("fp32"), *_all("fp16"), *_all("fp32", "1.8.0"))
    found = usable_engines(bundle, "tensorrt-rtx", "auto", "1.7.1", "8.6")
    assert {(info.graph, info.precision, info.version) for info in found.values()} == {
        (name, "fp32", "1.7.1") for name in ("transformer", "policy", "decoder")
    }
    found = usable_engines(bundle, "tensorrt-rtx", "fp16", "1.7.1", "8.6")
    assert {info.precision for info in found.values()} == {"fp16"}


def test_of_several_that_run_here_the_newest_is_taken(tiny_bundle: Path) -> None:
    bundle = _with_engines(tiny_bundle, *_all("fp32"), *_all("fp32"))
    found = usable_engines(bundle, "tensorrt-rtx", "fp32", "1.7.1", "8.6")
    newest = bundle.manifest.engines[3:]
    assert all(any(info is each for each in newest) for info in found.values())


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (("1.8.0", "8.6"), "here is tensorrt-rtx 1.8.0"),
        (("1.7.1", "8.9"), "the GPU here is 8.9"),
        (("1.7.1", "8.7"), "--backend tensorrt --precision fp16"),
    ],
)
def test_what_does_not_run_here_names_the_command_that_would(
    tiny_bundle: Path, here: tuple[str, str], expected: str
) -> None:
    bundle = _with_engines(tiny_bundle, *_all("fp16"))
    with pytest.raises(EngineError) as raised:
        usable_engines(bundle, "tensorrt-rtx", "auto", *here)
    message = str(raised.value)
    assert expected in message
    assert "was built by tensorrt-rtx 1.7.1 for 8.6" in message
    assert f"fewstep build {tiny_bundle} --backend tensorrt" in message
    assert message.endswith("--precision fp16 --max-batch 4 --opt-batch 1 --opt-batch 2")
    if here[1] != "8.7":  # Jetsons are TensorRT's
        assert f"--compute-capability {here[1]}" in message


def test_a_graph_without_an_engine_is_named(tiny_bundle: Path) -> None:
    bundle = _with_engines(tiny_bundle, *_all("fp16")[:1])
    with pytest.raises(EngineError, match="of decoder, policy there is none"):
        usable_engines(bundle, "tensorrt-rtx", "auto", "1.7.1", "8.6")


def test_an_engine_of_another_graph_is_refused(tiny_bundle: Path) -> None:
    bundle = _with_engines(tiny_bundle, *_all("fp32"))
    *others, last = bundle.manifest.engines
    stale = last.model_copy(update={"graph_sha256": "0" * 64})
    manifest = bundle.manifest.model_copy(update={"engines": (*others, stale)})
    with pytest.raises(EngineError, match="from another graph 'decoder' than the bundle has now"):
        usable_engines(Bundle(tiny_bundle, manifest), "tensorrt-rtx", "auto", "1.7.1", "8.6")


def test_a_bundle_that_is_damaged_is_told_by_the_last(bundle_copy: Path) -> None:
    (bundle_copy / "decoder.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="damaged"):
        open_backend(Bundle.read(bundle_copy), Wanted(threads=1))
