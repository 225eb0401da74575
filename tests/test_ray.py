"""Analyses on a real Ray cluster on this machine: a head node and further nodes, each with workers of its own."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from test_cache import same, save

from qkspec import engine
from qkspec.analysis import Settings, analyze, measure_runs
from qkspec.checkpoints.sequence import find_runs
from qkspec.engine import Engine, Ready
from qkspec.errors import UsageError

ray = pytest.importorskip("ray", reason="ray is not installed (qkspec[ray])")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster():
    """The address of three nodes with one processor each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made.address
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def process_of():
    """A function that travels by value: the cluster's nodes have qkspec, not its tests."""

    def found(n):
        time.sleep(0.2)
        return n, os.getpid()

    return found


def test_tasks_spread_and_come_back_in_order(cluster, process_of):
    found = list(engine.run_on_ray(process_of, [0, 1, Ready("here"), *range(2, 12)], address=cluster))
    assert found.pop(2) == "here"
    assert [n for n, _ in found] == list(range(12))
    assert len({pid for _, pid in found}) >= 2
    assert os.getpid() not in {pid for _, pid in found}


def test_a_worker_killed_in_the_middle_loses_nothing(cluster, tmp_path):
    killed = tmp_path / "killed"

    def one(n):
        if n == 3 and not killed.exists():
            killed.write_text("once")
            os.kill(os.getpid(), signal.SIGKILL)
        return n * n

    assert list(engine.run_on_ray(one, range(12), address=cluster)) == [n * n for n in range(12)]
    assert killed.exists()


def test_the_report_is_that_of_this_machine_to_the_last_bit(cluster, tmp_path):
    for step in range(6):
        save(tmp_path / "run" / f"step-{step}", step)
    (tmp_path / "run" / "step-3" / "model.safetensors").write_bytes(b"broken")
    run = tmp_path / "run"
    same(analyze([run]), analyze([run], Settings(engine=Engine.RAY, ray_address=cluster)))


def test_a_node_that_goes_away_loses_nothing(process_of):
    from ray.cluster_utils import Cluster

    ray.shutdown()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = made.add_node(num_cpus=1)
    made.wait_for_nodes()
    stop = threading.Timer(1.5, made.remove_node, (lost, False))
    try:
        stop.start()
        found = list(engine.run_on_ray(process_of, range(20), address=made.address))
        assert [n for n, _ in found] == list(range(20))
    finally:
        stop.join()
        ray.shutdown()
        made.shutdown()


def test_no_cluster_at_the_address_is_said(process_of):
    with pytest.raises(UsageError, match="ray-address"):
        list(engine.run_on_ray(process_of, [1], address="127.0.0.1:1"))


def test_results_stream(cluster, tmp_path):
    save(tmp_path / "run" / "step-0", 0)
    save(tmp_path / "run" / "step-1", 1)
    results = measure_runs(find_runs([str(tmp_path / "run")]), Settings(engine=Engine.RAY, ray_address=cluster))
    first = next(results)
    assert np.isfinite(first.readings.metric("sigma1")).all()
    results.close()


def test_a_gpu_that_no_node_has_is_not_waited_for(cluster, tmp_path):
    save(tmp_path / "run" / "step-0", 0)
    asked = Settings(engine=Engine.RAY, ray_address=cluster, device="cuda")
    with pytest.raises(UsageError, match="no node of the Ray cluster has a GPU"):
        list(measure_runs(find_runs([str(tmp_path / "run")]), asked))
