"""A cluster of Ray of two machines, which are two raylets on this one."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.exported import ROOT

_PLAIN: dict[str, Any] = {"object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.1"}
_SOON = {  # a lost machine is known to be lost after two seconds, not ten
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


@dataclass
class Machines:
    """The cluster: its address, and the machine that may be killed."""

    cluster: Any
    address: str
    second: Any

    def second_works(self) -> bool:
        """Whether an actor of Ray Data on the second machine is at a task now."""
        raylet = self.second.all_processes["raylet"][0].process.pid
        titles = []
        for child in Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split():
            with contextlib.suppress(OSError):
                titles.append(Path(f"/proc/{child}/cmdline").read_bytes())
        return any(b"MapWorker" in each and b"submit" in each for each in titles)

    def replace_second(self) -> None:
        """End all processes of the second machine at once; another joins."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = self.cluster.add_node(num_cpus=1, **_PLAIN)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Two machines of one core each, on the loopback alone; they report to nobody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the loopback's address for all
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        folders = (*(str(ROOT / name) for name in ("runtime", "export", "calibration")), str(ROOT))
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        yield from _started()


def _started() -> Iterator[Machines]:
    ray: Any = pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": _SOON}
    cluster: Any = Cluster(initialize_head=True, head_node_args={**_PLAIN, **head})
    try:
        second = cluster.add_node(num_cpus=1, **_PLAIN)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield Machines(cluster, cluster.address, second)
    finally:
        ray.shutdown()
        cluster.shutdown()
