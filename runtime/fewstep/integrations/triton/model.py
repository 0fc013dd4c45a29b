"""What Triton's Python backend runs; inputs and outputs are those of ``repository.py``.

Triton gives several requests at once. Those with the same settings are decoded together, and a bad
one gets an error of its own.
"""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import DeviceError, FewstepError, RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.preview import Callback, StepPreview, steps_of
from fewstep.runtime.request import checked_request
from fewstep.server.job import shown_steps


@dataclass(frozen=True)
class _Asked:
    """What a request asks for. ``condition [B, …]``, ``seeds [B]``; ``number``: of the request;
    ``partial``: how many images before the last step it wants to see."""

    number: int
    condition: Array
    seeds: Array
    settings: dict[str, Any]
    negative: str | None
    partial: int

    @property
    def group(self) -> str:
        """The same for requests that can be decoded together."""
        return json.dumps([self.settings, self.negative], sort_keys=True)


class TritonPythonModel:
    """A model of the Python backend, an instance a process; Triton calls its methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle.

        Args:
            args: of Triton: ``model_config`` (JSON), where the model is, and the kind and number of
                the device.

        Raises:
            FewstepError: what ``Generator.open`` raises, or engines for smaller batches.
        """
        self._pb: Any = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        self._partial = self._pb.using_decoupled_model_transaction_policy(config)
        said = {name: each["string_value"] for name, each in config["parameters"].items()}
        on_gpu = args["model_instance_kind"] == "GPU"
        self._generator = Generator.open(
            Path(args["model_repository"], args["model_version"], said["bundle"]),
            backend=said["backend"],
            device=f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu",
            precision=said["precision"],
            threads=int(said["threads"]),
            max_batch=config["max_batch_size"],
        )
        if self._generator.max_batch < config["max_batch_size"]:
            most = self._generator.max_batch
            self._generator.close()
            raise DeviceError(f"the engines take {most} images: set max_batch_size: {most}")
        info = self._generator.model.info.condition
        if isinstance(info, ClassCondition):
            self._input = "class_id"
        else:
            self._input = "prompt" if info.encoder else "text"

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Make the images of some requests.

        Returns:
            A response for each; ``None`` where responses are sent, as with partial images.
        """
        responses: list[Any] = [None] * len(requests)
        senders = [each.get_response_sender() for each in requests] if self._partial else []

        def answer(number: int, response: Any, final: bool = True) -> None:
            if self._partial:
                flags = self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
                senders[number].send(response, flags)
            else:
                responses[number] = response

        groups: defaultdict[str, list[_Asked]] = defaultdict(list)
        for number, request in enumerate(requests):
            try:
                asked = self._asked(number, request)
                self._checked([asked])
                groups[asked.group].append(asked)
            except FewstepError as error:
                answer(number, self._error(error))
        for group in groups.values():
            try:
                self._make(group, answer)
            except FewstepError as error:
                for asked in group:
                    answer(asked.number, self._error(error))
        return None if self._partial else responses

    def finalize(self) -> None:
        """Release the engines."""
        self._generator.close()

    def _asked(self, number: int, request: Any) -> _Asked:
        condition = self._rows(request, self._input)
        assert condition is not None  # Triton refuses requests without
        seeds = self._rows(request, "seed")
        partial = self._one(request, "partial_images", 0) if self._partial else 0
        settings = self._settings(self._one(request, "settings", b"{}"))
        negative = self._one(request, "negative", None)
        if partial < 0:
            raise RequestError(f"partial_images must be at least 0, got {partial}")
        rows = len(condition)
        seeds = np.zeros(rows, np.uint64) if seeds is None else seeds.reshape(rows)
        condition = condition if self._input == "text" else condition.reshape(rows)
        negative = None if negative is None else _text(negative)
        return _Asked(number, condition, seeds, settings, negative, partial)

    def _settings(self, given: bytes) -> dict[str, Any]:
        try:
            found = json.loads(given)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise RequestError(f"settings must be a JSON object, got {_text(given)}")
        if (file := self._generator.family.Settings.file_of(found)) is not None:
            raise RequestError(f"a request cannot name files, got {file!r}")
        return found

    def _rows(self, request: Any, name: str) -> Array | None:
        tensor = self._pb.get_input_tensor_by_name(request, name)
        return None if tensor is None else tensor.as_numpy()

    def _one(self, request: Any, name: str, default: Any) -> Any:
        """The value of an input that all images of a request have alike."""
        rows = self._rows(request, name)
        values = {default} if rows is None else set(rows.reshape(-1).tolist())
        if len(values) != 1:
            raise RequestError(f"{name} must be the same for all images of a request")
        return values.pop()

    def _checked(self, group: Sequence[_Asked]) -> Any:
        """Requests with the same settings as one of the generator."""
        wanted: Any = np.concatenate([each.condition for each in group])
        if self._input == "prompt":
            wanted = [_text(each) for each in wanted]
        return checked_request(
            self._generator.model,
            class_ids=wanted if self._input == "class_id" else None,
            text=None if self._input == "class_id" else wanted,
            seed=np.concatenate([each.seeds for each in group]).tolist(),
            settings=group[0].settings,
            negative=group[0].negative,
        )

    def _make(self, group: Sequence[_Asked], answer: Callable[..., None]) -> None:
        ends = np.cumsum([len(each.seeds) for each in group]).tolist()
        rows = [slice(end - len(each.seeds), end) for each, end in zip(group, ends, strict=True)]

        def after_step(step: int, preview: StepPreview) -> None:
            steps = steps_of(preview.trace)
            for asked, part in zip(group, rows, strict=True):
                if step in shown_steps(asked.partial, steps) and step + 1 < steps:
                    answer(asked.number, self._images(asked, preview.pixels[part], step), False)

        callback: Callback | None = after_step if any(each.partial for each in group) else None
        result = self._generator.run(self._checked(group), callback=callback)
        last = steps_of(result.trace) - 1
        for asked, part in zip(group, rows, strict=True):
            answer(asked.number, self._images(asked, result.images[part], last, final=True))

    def _images(self, asked: _Asked, pixels: Array, step: int, final: bool = False) -> Any:
        rows = (len(asked.seeds), 1)
        outputs = {
            "image": np.ascontiguousarray(pixels),
            "seed": asked.seeds.reshape(rows),
            "step": np.full(rows, step, np.int32),
            "final": np.full(rows, final, np.bool_),
        }
        return self._pb.InferenceResponse([self._pb.Tensor(*each) for each in outputs.items()])

    def _error(self, error: FewstepError) -> Any:
        bad = isinstance(error, RequestError)
        kind = self._pb.TritonError.INVALID_ARG if bad else self._pb.TritonError.INTERNAL
        return self._pb.InferenceResponse(error=self._pb.TritonError(str(error), kind))


def _text(given: Any) -> str:
    return given.decode(errors="replace") if isinstance(given, bytes) else str(given)
