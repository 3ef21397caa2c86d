"""What is said when memory runs out or a worker is lost: one line, with the true count, peak, limit and remedy."""

import os
import pickle
import re
import subprocess
import sys

import psutil
import pytest
from processes import ROOT, TINY, here
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError

from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.remote import memory
from pipeline.remote.failures import WorkerMemoryError, failure_reason, is_out_of_memory
from pipeline.remote.memory import kernel_kills, killed_memory, kills_since, limit_bytes, own_memory
from pipeline.train.failures import explain, telling

# As Ray 2.60 has said it, a little shortened.
KILLED = """4 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: ce8\
569e) was 5.39GB used / 23.54GB limit (0.229090)
OOM kill reason: Memory usage 5746798592B exceeded threshold of 5737767936B (22.7% of 25276510208B limit)
Object store memory usage: [- objects spillable: 1
- bytes spillable: 4914
(global lru) bytes evicted: 0]
Ray killed 4 worker(s) based on the killing policy
Considered workers: [
Selected to kill: (Actor(d24ad8cbf84b): job ID=01000000, lease ID=07, task name=PreemptionWatcher.__init__, required \
resources={}, pid=8972, actual memory used=0.10GB, worker ID=a6f8b71e)
Selected to kill: (Actor(272d9ac23eb2): job ID=01000000, lease ID=05, task name=RayTrainWorker.__init__, required \
resources={CPU_group_0_8ea443: 2}, pid=8844, actual memory used=1.10GB, worker ID=6f513cb8)
(Actor(20ebc267da40): job ID=01000000, lease ID=01, task name=TrainController.__init__, required resources={}, \
pid=8713, actual memory used=3.37GB, worker ID=ea39343e)
]
Total non-selected idle workers USS bytes: 0.00GB
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
3927\t2.51\t/work/main/.venv/bin/python -u -c import sys
8844\t1.10\tray::RayTrainWorker
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/"""
# Of versions before 2.56.
EARLIER = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.62.231, ID: e5d9) where the task (actor ID: ab, name=RayTrainWorker.__init__, pid=73, \
memory used=15.20GB) was running was 27.71GB / 28.80GB (0.962273), which exceeds the memory usage threshold of 0.95. \
Ray killed this worker (ID: 6f) because it was the most recently scheduled task; to see more about memory usage \
on this node, use `ray logs raylet.out -ip 10.0.62.231`.
Top 10 memory users:
PID\tMEM(GB)\tCOMMAND
410728\t8.47\tpython elsewhere
410729\t15.20\tray::RayTrainWorker
410730\t0.40\tray::IDLE"""
DIED = """A worker health check failed.
The actor died unexpectedly before finishing this task.
\tclass_name: RayTrainWorker
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was \
killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed."""


class Wrapped(Exception):
    """As Ray Train hands on the death of a worker."""

    def __init__(self, text: str):
        super().__init__(text)
        self.health_check_failure = ActorDiedError()


def told(
    cause: Exception | dict[int, Exception], failures: int | None = 2, record=None, killed=False, **train
) -> str:
    settings = load_config(overrides=[f"train.{key}={value}" for key, value in train.items()])
    error = WorkerGroupError("…", cause) if isinstance(cause, dict) else ControllerError(cause)
    return explain(error, failures, record or {}, settings, killed)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (KILLED, "peak 1.1 GiB, Ray's limit 5.3 GiB, the node used 5.39 of 23.5 GiB"),
        (EARLIER, "peak 15.2 GiB, the node used 27.7 of 28.8 GiB"),
        ("killed: memory usage threshold", ""),
        (DIED, ""),
        ("", ""),
    ],
)
def test_peak_and_limit_are_read_from_what_ray_says_where_it_does(text, expected):
    assert killed_memory(text) == expected


def test_a_process_tells_its_own(tmp_path, monkeypatch):
    assert re.fullmatch(r"peak \d+\.\d GiB, limit \d+\.\d GiB of the (node|container|GPU)", own_memory())
    whole, _ = limit_bytes()
    group = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUPS", (str(group),))
    group.write_text("max\n")
    assert limit_bytes() == (whole, "node")
    group.write_text(f"{2**30}\n")
    assert limit_bytes() == (2**30, "container")


def test_reasons_are_one_line():
    assert failure_reason(OutOfMemoryError(KILLED)) == (
        "out of memory (peak 1.1 GiB, Ray's limit 5.3 GiB, the node used 5.39 of 23.5 GiB): Ray killed the process"
    )
    died = "its process was killed or crashed (Worker unexpectedly exits with a connection error code 2. End of file)"
    assert failure_reason(Wrapped(DIED)) == died
    assert failure_reason(NodeDiedError("Task failed because the node died: 3a.")) == "its node was lost"
    refused = RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")
    assert failure_reason(refused, "peak 1.0 GiB").startswith("out of memory (peak 1.0 GiB): DefaultCPU")
    assert not is_out_of_memory(Wrapped(DIED))  # which names the OOM killer as one cause among others
    kept = pickle.loads(pickle.dumps(WorkerMemoryError("ran out of memory")))  # noqa: S301  # as Ray does
    assert is_out_of_memory(kept)


def test_of_several_ranks_the_one_that_failed_first_is_told():
    lost, closed = Wrapped(DIED), RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:37")
    assert telling({0: closed, 1: lost}) is lost
    assert isinstance(telling({0: lost, 1: closed, 2: MemoryError()}), MemoryError)
    assert isinstance(telling({0: closed, 1: ValueError("got 3")}), ValueError)


def test_memory_that_ran_out_is_one_line_with_peak_limit_and_what_to_lower():
    own = WorkerMemoryError("ran out of memory (peak 5.2 GiB, limit 8.0 GiB of the GPU): CUDA out of memory")
    for cause in (OutOfMemoryError(KILLED), {0: OutOfMemoryError(KILLED)}, {0: RuntimeError("gloo"), 1: own}):
        line = told(cause, batch_size=96, max_failures=1)
        assert line.startswith("a training worker ran out of memory (peak ")
        assert " limit " in line
        assert "lower train.batch_size (now 96), sampler.particles (now 512) or train.memory_mb (now 4096)" in line
        assert "training failed 2 times (train.max_failures=1); the same command goes on" in line
        assert "\n" not in line
        assert "workers on a node" not in line
    assert "or run fewer workers on a node" in told({0: own}, num_workers=2)


def test_failures_are_counted_as_they_were():
    assert "training failed 1 time (train.max_failures=3)" in told({0: Wrapped(DIED)}, 1)
    assert "training failed (train.max_failures=3)" in told({0: Wrapped(DIED)}, None)  # the board was lost, too


def test_a_lost_worker_is_told_with_its_peak_and_what_the_kernel_has_done(monkeypatch):
    record = {"phase": "sampler", "peak_mb": 5583.0}
    line = told({0: Wrapped(DIED)}, 2, record)
    assert "The last failure: its process was killed or crashed (Worker unexpectedly exits" in line
    assert "rank 0 had a peak of 5.2 GiB: if the machine's memory ran out (`dmesg`), lower train.batch_size" in line
    line = told({0: Wrapped(DIED)}, 2, record, killed=True)
    assert line.startswith("a training worker ran out of memory (rank 0 had a peak of 5.2 GiB): the kernel killed")
    assert kernel_kills() is None or not kills_since(kernel_kills())
    monkeypatch.setattr("pipeline.remote.memory.kernel_kills", lambda: 3)
    assert (kills_since(2), kills_since(3), kills_since(None)) == (True, False, False)


def test_other_errors_keep_what_ray_says_of_them():
    assert told({0: ValueError("got 3")}).endswith("The last failure:\nTraining failed due to worker errors:\n…")
    line = told({0: OSError(28, "No space left on device")})
    assert line.endswith("The last failure: cannot write a checkpoint: [Errno 28] No space left on device")
    assert explain(ValueError("x"), 1, {}, Config(), False).endswith("The last failure:\nx")


HUNGRY = """
import os, signal, time
from pathlib import Path
import torch
from torch import nn
from ldcvae.variants import NETWORKS, Network

held = []

class Hungry(nn.Module):
    def forward(self, x):
        how = Path(__file__).with_suffix(".how").read_text()
        if self.training and how == "refused":
            torch.empty(2**50)
        if self.training and how == "shot":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.training and how == "greedy":
            for _ in range(50):
                held.append(torch.ones(25_000_000))  # 100 MB
                time.sleep(0.02)
            time.sleep(10)
        return x

def encoder(shape, latent_dim, width, depth):
    c, h, w = shape
    return nn.Sequential(nn.Flatten(), Hungry(), nn.Linear(c * h * w, 2 * latent_dim))

def decoder(shape, latent_dim, width, depth):
    c, h, w = shape
    return nn.Sequential(nn.Linear(latent_dim, c * h * w), nn.Unflatten(1, shape))

NETWORKS.register(Network("hungry", encoder, decoder))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hungry")
    (folder / "hungry.py").write_text(HUNGRY)
    here("prepare", folder / "runs")
    return folder


SEARCH = ['tune.space={"train.ema": {"type": "uniform", "low": 0.9, "high": 0.9999}}', "tune.num_samples=1"]
SEARCH += ["tune.max_failures=1", "tune.num_images=64", "tune.draws=1"]


TWICE = """
import sys
from pathlib import Path
from pipeline.__main__ import main
from pipeline.config.load import load_config
from pipeline.remote.connect import connect

hows, stage, *words = sys.argv[1:]
with connect(load_config(None, ["ray.num_cpus=2"])):  # one Ray for all: its start takes longer than what it runs
    for how in hows.split(","):
        Path("hungry.how").write_text(how)
        try:
            main(stage, words)
        except SystemExit as ended:
            for file in (sys.stdout, sys.stderr):
                print(f"-- {how} {ended.code}", file=file, flush=True)
"""


def ended(folder, *hows: str, stage: str = "train", more=(), **environment: str) -> dict[str, tuple[str, str]]:
    """How its memory fares -> (what was said, the one line of error) of a training or a search that fails."""
    words = ["--plugin", "hungry", *TINY, "storage=runs", "model.network=hungry", "train.max_failures=1", *more]
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TWICE, ",".join(hows), stage, *words]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | variables | environment, capture_output=True, text=True, timeout=500
    )
    said, errors = done.stdout, done.stderr
    found = {}
    for how in hows:
        out, mark, said = said.partition(f"-- {how} 1\n")
        assert mark, done.stdout + done.stderr
        err, _, errors = errors.partition(f"-- {how} 1\n")
        (error,) = [line for line in err.splitlines() if "Trials did not complete" not in line]  # Tune's own word
        assert error.startswith("error: ")
        assert "raylet" not in out
        found[how] = out, error
    return found


@pytest.fixture(scope="module")
def told_of(prepared):
    # Ray's monitor off, which would kill what is about to be killed on a machine short of memory.
    return ended(prepared, "refused", "shot", RAY_memory_monitor_refresh_ms="0")


@pytest.mark.slow
def test_memory_that_is_refused_is_told_once(told_of):
    said, error = told_of["refused"]
    assert re.search(
        r"a training worker ran out of memory \(peak .* GiB, limit .* GiB of the \w+\): .*allocate", error
    )
    assert "lower train.batch_size (now 64)" in error
    assert "starting again" not in said  # it would be refused again


@pytest.mark.slow
def test_lost_workers_are_counted(told_of):
    said, error = told_of["shot"]
    assert said.count("a worker failed: its process was killed or crashed") == 1
    assert "starting again, 1 of 1 times" in said
    assert "training failed 2 times (train.max_failures=1); the same command goes on" in error


def scarce() -> dict[str, str]:
    """Ray's memory monitor, told to kill what takes 3 GB more than there is in use now."""
    now = psutil.virtual_memory()
    if now.available < 8e9:
        pytest.skip("needs 8 GB of free memory")
    threshold = (now.total - now.available + 3e9) / now.total
    return {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100"}


KILLED_LINE = r"out of memory \(peak \d+\.\d GiB, Ray's limit .* GiB, the node used .* GiB\): Ray"


@pytest.mark.drill
def test_a_worker_that_ray_kills_for_want_of_memory_is_one_line(prepared):
    _, error = ended(prepared, "greedy", **scarce())["greedy"]
    assert re.search(f"a training worker ran {KILLED_LINE}", error)
    assert "lower train.batch_size (now 64)" in error
    assert re.search(r"training failed( [12] times?)? \(train.max_failures=1\)", error)


@pytest.mark.drill
def test_a_trial_that_ray_kills_for_want_of_memory_is_one_line_and_the_search_goes_on(prepared):
    said, error = ended(prepared, "greedy", stage="tune", more=SEARCH, **scarce())["greedy"]
    told = f"{KILLED_LINE} killed the process; lower train.batch_size"
    assert re.search(f"tune: trial 0 failed: {told}", said)
    assert "tune: 1/1 trials, 1 failed" in said
    assert re.search(f"no trial of the search completed: {told}", error)


@pytest.mark.drill
def test_a_lost_worker_of_a_trial_is_told_after_the_tries_of_one_trial(prepared):
    own = [*SEARCH, "name=tiny-two", "train.num_workers=2", "tune.max_failures=0"]
    said, error = ended(prepared, "shot", stage="tune", more=own, RAY_memory_monitor_refresh_ms="0")["shot"]
    told = "its process was killed or crashed (Worker unexpectedly exits"
    assert f"tune: trial 0 failed: {told}" in said
    assert told in error
