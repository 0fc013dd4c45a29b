"""A bundle as a model in a repository of Triton Inference Server.

    OUT/NAME/config.pbtxt
    OUT/NAME/1/model.py      one line: :class:`fewstep.integrations.triton.model.TritonPythonModel`
    OUT/NAME/1/bundle/       a copy of the bundle, unless it is referenced

Inputs, a row an image: ``class_id [B, 1]`` int32, or ``prompt [B, 1]`` (and ``negative``), or
``text [B, L, D]`` float32 where the bundle has no text encoder; ``seed [B, 1]`` uint64 (0);
``settings [B, 1]``, a JSON object, the same for all images of a request; with partial images
``partial_images [B, 1]`` int32, how many of them, spread over the steps (0).

Outputs: ``image [B, H, W, 3]`` uint8, ``seed [B, 1]`` uint64, ``step [B, 1]`` int32 (0 … T − 1),
``final [B, 1]`` bool.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition, Condition
from fewstep.runtime.engines.select import Wanted, no_engines
from fewstep.runtime.engines.tensorrt_api import MODULES
from fewstep.runtime.errors import EngineError, OutputError, RequestError
from fewstep.runtime.files import replacing_folder
from fewstep.runtime.manifest import MANIFEST_NAME

CONFIG = "config.pbtxt"
_MODEL = "from fewstep.integrations.triton.model import TritonPythonModel as TritonPythonModel\n"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Served:
    """How Triton runs a bundle.

    ``gpus``: an instance on each, on the CPU if empty; ``instances``: on each of these. ``batch``:
    images decoded together, of one request or several. ``partial``: whether responses are a stream,
    with images before the last step. ``backend``, ``precision``, ``threads``: as of
    ``Generator.open``.
    """

    gpus: tuple[int, ...] = ()
    instances: int = 1
    batch: int = 8
    partial: bool = False
    backend: str = "auto"
    precision: str = "auto"
    threads: int = 0


def write_model(
    bundle: Bundle,
    repository: Path,
    served: Served,
    *,
    name: str | None = None,
    copy: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a bundle as a model of a repository, whole or not at all.

    Args:
        bundle: what it serves; its files are checked.
        repository: folder of models, made where it is absent.
        served: how.
        name: of the model; the bundle's own if ``None``.
        copy: put the bundle into the model; else it stays where it is and is named.
        overwrite: replace a model of this name.

    Returns:
        The model's folder.

    Raises:
        RequestError: a name that no folder of Triton can have, numbers out of range, or a backend
            that does not run there.
        BundleError: the bundle is damaged, or has no graphs in the precision.
        EngineError: the bundle has no such engines, or they take fewer images.
        OutputError: the place is not writable, inside of a bundle, or has a model of this name.
    """
    name = bundle.manifest.name if name is None else name
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"'{name}' cannot be a model's name in Triton: give one of letters, digits, '.', '_' "
            "and '-' with --name"
        )
    if min(served.batch, served.instances) < 1 or min(served.gpus, default=0) < 0:
        raise RequestError("expected at least 1 image, at least 1 instance, and GPUs from 0 on")
    _require_runnable(bundle, served)
    place = repository / name
    _require_apart(place)
    with replacing_folder(place, overwrite=overwrite, marker=CONFIG) as folder:
        version = folder / "1"
        version.mkdir()
        if copy:
            _copy(bundle, version / "bundle")
        where = "bundle" if copy else str(bundle.path.resolve())
        text = "\n".join(_config(bundle, name, served, where)) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        (version / "model.py").write_text(_MODEL, encoding="utf-8")
    return place


def _require_runnable(bundle: Bundle, served: Served) -> None:
    """Refuse what no machine opens. What this one has is not asked: Triton may be elsewhere."""
    backend, precision = served.backend, served.precision
    Wanted.parse(backend, "auto", precision, served.threads)
    if backend in MODULES and not served.gpus:
        raise RequestError(f"backend {backend} runs on GPUs: name them with --gpus")
    if backend == "openvino" and served.gpus:
        raise RequestError("backend openvino runs on the CPU: leave out --gpus")
    engines = [
        info
        for info in bundle.manifest.engines
        if served.gpus
        and backend in ("auto", info.backend)
        and precision in ("auto", info.precision)
    ]
    if engines:
        most = max(info.options.max_batch for info in engines)
        if served.batch > most:
            raise EngineError(
                f"the engines of {bundle.path} take {most} images at most: pass --batch {most}, or "
                f"build them with: fewstep build --max-batch {served.batch}"
            )
    elif backend in MODULES:
        raise no_engines(bundle, backend, precision)
    elif precision not in ("auto", "bf16", "fp16") or not _has_openvino(served):
        for graph in bundle.manifest.graphs:
            bundle.graph(graph, "fp32" if precision == "auto" else precision)


def _has_openvino(served: Served) -> bool:
    """Whether OpenVINO may run it, which makes bf16 and fp16 of the fp32 graphs."""
    named = served.backend == "openvino"
    here = served.backend == "auto" and importlib.util.find_spec("openvino") is not None
    return named or (here and not served.gpus)


def _require_apart(place: Path) -> None:
    """Refuse a model whose folder lies inside of a bundle, or of a file."""
    for folder in place.absolute().resolve().parents:
        if (folder / MANIFEST_NAME).is_file():
            raise OutputError(f"{folder} is a bundle: name another folder for Triton's models")
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file: name a folder for Triton's models")


def _copy(bundle: Bundle, target: Path) -> None:
    for name in bundle.manifest.files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.verified(name), target / name)
    shutil.copyfile(bundle.path / MANIFEST_NAME, target / MANIFEST_NAME)


def _config(bundle: Bundle, name: str, served: Served, where: str) -> Iterator[str]:
    """Lines of ``config.pbtxt``, which is protobuf's text format; strings are as those of JSON."""
    height, width = bundle.manifest.model.image_size
    yield f"name: {json.dumps(name)}"
    yield 'backend: "python"'
    yield f"max_batch_size: {served.batch}"
    yield "dynamic_batching { }"
    if served.partial:
        yield "model_transaction_policy { decoupled: true }"
    for tensor in _condition(bundle.manifest.model.condition):
        yield f"input {{ {tensor} }}"
    yield f"input {{ {_tensor('seed', 'UINT64', 1)} optional: true }}"
    yield f"input {{ {_tensor('settings', 'STRING', 1)} optional: true }}"
    if served.partial:
        yield f"input {{ {_tensor('partial_images', 'INT32', 1)} optional: true }}"
    yield f"output {{ {_tensor('image', 'UINT8', height, width, 3)} }}"
    yield f"output {{ {_tensor('seed', 'UINT64', 1)} }}"
    yield f"output {{ {_tensor('step', 'INT32', 1)} }}"
    yield f"output {{ {_tensor('final', 'BOOL', 1)} }}"
    count = f"count: {served.instances}"
    gpus = f"kind: KIND_GPU gpus: {[*served.gpus]}" if served.gpus else "kind: KIND_CPU"
    yield f"instance_group {{ {count} {gpus} }}"
    parameters = {
        "bundle": where,
        "backend": served.backend,
        "precision": served.precision,
        "threads": str(served.threads),
    }
    for key, value in parameters.items():
        text = json.dumps(value, ensure_ascii=False)
        yield f'parameters {{ key: "{key}" value {{ string_value: {text} }} }}'


def _condition(info: Condition) -> Sequence[str]:
    """The inputs that say what to draw."""
    if isinstance(info, ClassCondition):
        return [_tensor("class_id", "INT32", 1)]
    if info.encoder is None:
        return [_tensor("text", "FP32", info.length, info.width)]
    negative = f"{_tensor('negative', 'STRING', 1)} optional: true"
    return [_tensor("prompt", "STRING", 1), negative]


def _tensor(name: str, kind: str, *sides: int) -> str:
    return f'name: "{name}" data_type: TYPE_{kind} dims: {[*sides]}'
