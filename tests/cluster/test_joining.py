"""A run on a cluster whose machines come and go: it waits, grows, outlives the loss of a node and of its driver."""

import json
import threading
import time

import pytest
from nodes import Nodes
from processes import finish, here, run, start, wait_for

# Without an end: the test stops it when it has seen enough. An epoch takes about a second, most of it asleep.
ENDLESS = ["train.num_workers=[1,2]", "train.epochs=100000", "train.checkpoint_epochs=1"]
ENDLESS += ["--plugin", "sleepy", "model.network=sleepy"]
SLEEPY = """
import time
from torch import nn
from ldcvae.networks import mlp_decoder, mlp_encoder
from ldcvae.variants import NETWORKS, Network
from pipeline.train import fit

fit._LOOK_FOR_ROOM_EVERY = 5.0  # seconds, not 30: the test waits for it

class Sleep(nn.Module):
    def forward(self, x):
        if self.training:
            time.sleep(0.05)
        return x

def encoder(shape, latent_dim, width, depth):
    return nn.Sequential(Sleep(), mlp_encoder(shape, latent_dim, width, depth))

NETWORKS.register(Network("sleepy", encoder, mlp_decoder))
"""


@pytest.mark.slow
def test_training_waits_grows_shrinks_and_goes_on_with_its_cluster(tmp_path, monkeypatch):
    here("prepare", tmp_path)
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")  # as on a cluster
    with Nodes() as nodes:
        for name, value in nodes.environment.items():
            monkeypatch.setenv(name, value)
        nodes.wait_for_head()
        process = start("train", tmp_path, *ENDLESS, cwd=tmp_path)
        lines, waiting = [], threading.Event()

        def read():
            for line in process.stdout:
                lines.append(line)
                if "waiting for 1 CPUs, the cluster has 0 now" in line:
                    waiting.set()

        reader = threading.Thread(target=read)
        reader.start()

        def until(workers):
            """Epochs up to the first that `workers` workers have trained, after those of the call before."""
            seen, deadline = len(epochs(tmp_path)), time.monotonic() + 300
            while not (found := [e for e in epochs(tmp_path)[seen:] if e["workers"] == workers]):
                assert reader.is_alive(), [*lines, process.stderr.read()]
                assert time.monotonic() < deadline, lines
                nodes.replace_lost()
                time.sleep(0.2)
            return found[0]["epoch"]

        try:
            assert waiting.wait(120), [*lines, process.stderr.read() if process.poll() else ""]
            nodes.join()
            alone = until(1)
            nodes.join()
            together = until(2)
            nodes.kill(1)
            again = until(1)
            process.kill()
            reader.join()
            seen = len(epochs(tmp_path))
            log = tmp_path / "again.log"
            process = start("train", tmp_path, *ENDLESS, output=log.open("w"), cwd=tmp_path)

            def goes_on():
                nodes.replace_lost()
                assert process.poll() is None, log.read_text()
                return len(epochs(tmp_path)) > seen

            # Ray would keep what the killed driver had reserved for three minutes.
            wait_for(goes_on, f"epoch after the driver was killed; {log}", timeout=170)
        finally:
            process.kill()
            reader.join()
    assert alone < together < again
    assert [e["epoch"] for e in epochs(tmp_path)] == list(range(1, len(epochs(tmp_path)) + 1))


@pytest.mark.drill
def test_workers_are_sized_by_the_nodes_and_not_by_the_whole_cluster(tmp_path, monkeypatch):
    here("prepare", tmp_path)
    with Nodes() as nodes:
        for name, value in nodes.environment.items():
            monkeypatch.setenv(name, value)
        nodes.wait_for_head()
        nodes.join(cpus=2)
        nodes.join(cpus=2)
        nodes.wait_for_nodes(cpus=2)
        # One worker asked for all four CPUs of the cluster, on one node, and waited for ever.
        process = start("train", tmp_path, "train.num_workers=1")
        out, err = finish(process, timeout=150)
        assert "train: done in" in out, err
        # And more than there is of is refused, in one line that says what there is, by `run` before it prepares.
        many = ["train.num_workers=5", "train.batch_size=60", "sampler.particles=60"]
        _, err = run("run", tmp_path / "other", *many, expect=2)
    assert err.strip() == (
        "error: train.num_workers: no room for 5 workers of 1 CPU each; Ray has 2 nodes of 2 CPUs and 0 GPUs; "
        "lower it, or join a larger cluster with ray.address"
    )
    assert not (tmp_path / "other" / "tiny" / "data").exists()


def epochs(storage):
    path = storage / "tiny" / "train" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
