"""What locust runs for ``serve.py``: users who ask for an image each, so many a second together.

Imports nothing of fewstep, since locust may live in another environment. Answers are counted by
their status, so that refusals are not among the times of images.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from typing import Any

from locust import FastHttpUser, task  # type: ignore[import-not-found]

_RATE = float(os.environ.get("SERVE_RATE", "1"))  # images a second of one user
_PROMPTS = os.environ.get("SERVE_PROMPTS", "0").split(",")
_seeds = itertools.count()


class Painter(FastHttpUser):  # type: ignore[misc]
    """Asks at random times, as users who know nothing of each other do: many of them together are
    Poisson's process. Locust's constant pace has them ask in bursts."""

    wait_time = staticmethod(lambda: random.expovariate(_RATE))
    network_timeout = connection_timeout = 60.0

    def on_start(self) -> None:
        """Begin at some time of the period: users that all ask at once are another load."""
        time.sleep(random.uniform(0, 1 / _RATE))

    @task  # type: ignore[untyped-decorator]
    def image(self) -> None:
        seed = next(_seeds)
        asked: dict[str, Any] = {"prompt": _PROMPTS[seed % len(_PROMPTS)], "seed": seed}
        with self.client.post("/v1/images/generations", json=asked, catch_response=True) as answer:
            answer.request_meta["name"] = str(answer.status_code)
            answer.success()
