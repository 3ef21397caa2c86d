"""Joining and starting Ray: one clear error; ranges of workers that fit the batch."""

import json

import pytest
import ray

from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import load_config, parse_config
from pipeline.remote.connect import connect
from pipeline.remote.hardware import place_workers, room
from pipeline.store.run import open_run
from pipeline.train.fit import check


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"Ray did not start: The node timed out during startup\.; .* the same command may work later"),
        (["ray.address=10.0.0.9:6379"], r"ray\.address: cannot join the cluster at 10\.0\.0\.9:6379: The node timed"),
    ],
)
def test_a_ray_that_does_not_start_is_one_line(monkeypatch, overrides, message):
    def fail(**options):
        raise Exception("The node timed out during startup.\nDetails that fill a screen.")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(PipelineError, match=message) as error, connect(load_config(None, overrides)):
        pass
    assert "\n" not in str(error.value)


def test_a_start_that_takes_too_long_on_a_busy_machine_is_tried_once_more(monkeypatch):
    tries = []

    def slow(**options):
        tries.append(options)
        if len(tries) == 1:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", slow)
    with connect(load_config()):
        pass
    assert len(tries) == 2
    tries.clear()
    with pytest.raises(PipelineError), connect(load_config(None, ["ray.address=10.0.0.9:6379"])):
        pass
    assert len(tries) == 1  # a cluster that is there has no start to wait for


def test_every_number_of_workers_in_a_range_must_divide_the_batch(tmp_path):
    settings = {"train": {"num_workers": [1, 4], "batch_size": 64}, "sampler": {"particles": 96}}
    run = open_run(parse_config(settings | {"storage": str(tmp_path)}))  # as Python gives it, past the command line
    run.stage("data", {}, lambda _: ([], {"shape": [1, 8, 8], "counts": {"train": 1294}}))
    with pytest.raises(ConfigError) as error:
        check(run)
    assert "train.batch_size: 64 does not divide over train.num_workers=[1, 4] (3 of them)" in str(error.value)
    assert "sampler.particles" not in str(error.value)


@pytest.mark.parametrize("value", ["0", "[4,1]", "[1]", "[1,2,3]", "two", "1.5", "true"])
def test_what_is_no_number_of_workers_is_refused_in_one_line(value):
    with pytest.raises(
        ConfigError, match=r"train\.num_workers: must be a number from 1 up, or \[least, most\]"
    ) as error:
        load_config(None, [f"train.num_workers={value}"])
    assert str(error.value).count("\n") == 1


@pytest.fixture(autouse=True)
def no_threads_asked_for(monkeypatch):
    """The tests themselves are run with OMP_NUM_THREADS=1."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


MACHINES = {"4 x 4": [4, 4, 4, 4], "2 x 2": [2, 2], "one": [8], "head and two": [0, 3, 8], "a small one": [1, 7, 7]}


@pytest.mark.parametrize(
    ("machines", "workers", "size"),
    [
        ("4 x 4", 2, 4),  # not 8, which no node has
        ("4 x 4", 4, 4),
        ("4 x 4", 5, 2),
        ("4 x 4", 9, 1),
        ("4 x 4", [1, 4], 4),
        ("4 x 4", [4, 64], 1),
        ("2 x 2", 2, 2),
        ("2 x 2", 1, 2),
        ("2 x 2", 3, 1),
        ("one", 3, 2),  # as on one machine ever since
        ("one", 1, 8),
        ("head and two", 3, 3),
        ("head and two", 2, 4),
        ("a small one", 2, 7),
    ],
)
def test_workers_are_as_large_as_the_nodes_allow(monkeypatch, machines, workers, size):
    cluster(monkeypatch, [{"CPU": cpus} for cpus in MACHINES[machines]])
    placement = place_workers(parse_config({"train": {"num_workers": workers}, "ray": {"address": "10.0.0.9:6379"}}))
    assert placement.resources == {"CPU": size}
    assert placement.threads == size
    least = workers if isinstance(workers, int) else workers[0]
    assert room(placement.resources, [{"CPU": cpus} for cpus in MACHINES[machines]]) >= least


SMALL, MIXED = [{"CPU": 2}] * 2, [{"CPU": 4}, {"CPU": 8, "GPU": 1}]
OTHERWISE = "or join a larger cluster with ray.address"


@pytest.mark.parametrize(
    ("nodes", "settings", "asked", "have"),
    [
        (SMALL, {"num_workers": 5}, "5 workers of 1 CPU each", "2 nodes of 2 CPUs and 0 GPUs; lower it"),
        (SMALL, {"num_workers": [5, 8]}, "5 workers of 1 CPU each", "2 nodes of 2 CPUs and 0 GPUs; lower it"),
        (
            MIXED,
            {"num_workers": 2},
            "2 workers of 1 CPU and 1 GPU each",
            "1 node of 4 CPUs and 0 GPUs, 1 node of 8 CPUs and 1 GPU; lower it",
        ),
        (SMALL, {"device": "cuda"}, "1 worker of 1 CPU and 1 GPU", "2 nodes of 2 CPUs and 0 GPUs; use auto or cpu"),
    ],
)
def test_a_placement_that_cannot_be_met_is_refused_in_one_line(monkeypatch, nodes, settings, asked, have):
    cluster(monkeypatch, nodes)
    config = parse_config({"train": settings, "ray": {"address": "10.0.0.9:6379"}})
    with pytest.raises(ConfigError) as error:
        place_workers(config)
    key = next(iter(settings))
    assert str(error.value) == f"train.{key}: no room for {asked}; Ray has {have}, {OTHERWISE}"


@pytest.mark.parametrize(
    ("nodes", "labels"),
    [([{}], {}), ([{"CPU": 1}], {"ray.io/node-group": "head"})],
    ids=["nobody has joined yet", "a launcher adds nodes by demand"],
)
def test_a_cluster_that_can_still_grow_is_waited_for(monkeypatch, nodes, labels):
    cluster(monkeypatch, nodes, labels)
    for device in ("cpu", "cuda"):
        settings = {"num_workers": 2, "device": device}
        config = parse_config({"train": settings, "ray": {"address": "10.0.0.9:6379"}})
        assert place_workers(config).fits < 2
    with pytest.raises(ConfigError):  # on this machine no other will join
        place_workers(parse_config({"train": {"num_workers": 2}}))


def test_gpus_do_not_change_how_many_threads_a_worker_has(monkeypatch):
    cluster(monkeypatch, [{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}])
    placement = place_workers(parse_config({"train": {"num_workers": 4}, "ray": {"address": "10.0.0.9:6379"}}))
    assert (placement.cuda, placement.resources, placement.threads) == (True, {"CPU": 1, "GPU": 1}, 4)


@pytest.mark.parametrize(
    ("value", "threads"), [("1", 1), ("3", 3), ("2,1", 2), ("64", 8), ("", 8), ("0", 8), ("many", 8), (None, 8)]
)
def test_workers_have_no_more_threads_than_omp_num_threads(monkeypatch, value, threads):
    cluster(monkeypatch, [{"CPU": 8}])
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    placement = place_workers(parse_config({}))
    assert (placement.resources, placement.threads) == ({"CPU": 8}, threads)  # the CPUs stay the worker's


@pytest.mark.parametrize(
    ("runtime_env", "threads"), [({"env_vars": {"OMP_NUM_THREADS": "2"}}, 2), ({"working_dir": "."}, 8), (None, 8)]
)
def test_the_thread_that_ray_gives_a_jobs_entrypoint_is_not_the_users(monkeypatch, runtime_env, threads):
    cluster(monkeypatch, [{"CPU": 8}])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": runtime_env, "metadata": {}}))
    assert place_workers(parse_config({})).threads == threads


def cluster(monkeypatch, nodes, labels=None):
    """Ray's view of a cluster with nodes of these resources."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    gone = {"Alive": False, "Resources": {}, "Labels": {}}
    alive = [{"Alive": True, "Resources": dict(node), "Labels": labels or {}} for node in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, gone])
    total = {what: sum(node.get(what, 0) for node in nodes) for what in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
