"""A cluster of Ray of two machines, which are two raylets on this one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

_STORE = 80 * 2**20  # bytes of shared memory, a machine
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

    def kill_second(self) -> None:
        """End all processes of the second machine at once."""
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Two machines of two cores and one, on the loopback alone; they report to nobody."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the loopback's address for all
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    plain: dict[str, Any] = {"object_store_memory": _STORE, "node_ip_address": "127.0.0.1"}
    head = {"num_cpus": 2, "include_dashboard": False, "_system_config": _SOON}
    cluster: Any = Cluster(initialize_head=True, head_node_args={**plain, **head})
    try:
        second = cluster.add_node(num_cpus=1, **plain)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield Machines(cluster, cluster.address, second)
    finally:
        ray.shutdown()
        cluster.shutdown()
