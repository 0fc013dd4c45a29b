"""fewstep on Ray: bulk generation with Ray Data, and the HTTP server as a deployment of Ray Serve.

Ray is imported when it is first needed (``pip install 'fewstep[ray]'``). It reports to its makers
unless ``RAY_USAGE_STATS_ENABLED`` is 0, which this package sets where the variable is not set.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from fewstep.runtime.errors import missing

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def ray_module(name: str) -> Any:
    """A module of Ray, such as ``ray.data``.

    Raises:
        MissingDependencyError: Ray, or what the module needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing("ray", "ray") from error
