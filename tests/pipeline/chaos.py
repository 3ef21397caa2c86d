"""Kill a running pipeline again and again, and check that nothing was lost. `make chaos` runs it.

    python tests/pipeline/chaos.py [--kills 20] [--seed 0] [key=value …]

Starts a Ray cluster of three nodes on this machine and `python -m pipeline.run` on it with one or two workers, its
storage an S3 server of which one request in twenty fails. At random moments, always after training has moved on, it
sends SIGKILL to the driver, to a training worker or to all processes of a node; a killed driver is started again with
the same command, a killed node replaced by a new one. A fourth kind is a driver that is lost with its machine: nobody
can see that it is dead, so the next one has to wait until its hold on the run has expired.
After the last kill the run has to end by itself, and what it left is compared with a run that nobody disturbed.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import boto3
import psutil
from faulty_proxy import faulty_proxy
from nodes import Nodes
from processes import start
from s3_server import environment, s3_server

from pipeline.config.load import parse_config
from pipeline.store.history import read_history
from pipeline.store.lease import LOCK
from pipeline.store.run import open_run
from pipeline.verify import run as verify

EPOCHS, STEPS, EVERY = 400, 2000, 5
RUN = [
    f"train.epochs={EPOCHS}",
    f"train.checkpoint_epochs={EVERY}",
    f"sampler.steps={STEPS}",
    f"sampler.checkpoint_steps={STEPS // 40}",
    "train.num_workers=[1,2]",
    "train.max_failures=1000",
]
KINDS = ("driver", "worker", "node", "driver with its machine")


class Store:
    """The bucket with the run, past the proxy: what is looked at here meets no faults.

    Args:
        port: of the S3 server.
    """

    def __init__(self, port: int):
        self._client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        self._client.create_bucket(Bucket="runs")

    def history(self) -> list[dict]:
        """Records of training so far; none while there is no file yet."""
        try:
            content = self._client.get_object(Bucket="runs", Key="tiny/train/metrics.jsonl")["Body"].read()
        except self._client.exceptions.NoSuchKey:
            return []
        return [json.loads(line) for line in content.decode().splitlines()]

    def place(self) -> tuple[int, int]:
        """How far training is: the phase, and epoch or step in it."""
        lines = self.history()
        if not lines:
            return (0, 0)
        last = lines[-1]
        return (0, last["epoch"]) if last["phase"] == "autoencoder" else (1, last["step"])

    def move_the_lock(self) -> None:
        """As if who holds the run were on another machine."""
        holder = json.loads(self._client.get_object(Bucket="runs", Key=f"tiny/{LOCK}")["Body"].read())
        content = json.dumps(holder | {"machine": "elsewhere"}).encode()
        self._client.put_object(Bucket="runs", Key=f"tiny/{LOCK}", Body=content)


def training_processes(nodes: Nodes, names: tuple[str, ...] = ("RayTrainWorker", "TrainController")) -> list:
    """Processes of Ray Train in this cluster, orphans included: all of them have its token."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if any(name in line for name in names) and process.environ().get("RAY_AUTH_TOKEN") == nodes.token:
                found.append(process)
        except psutil.Error:
            continue
    return found


class Chaos:
    """One run under fire.

    Args:
        store: where the run lies.
        log: what drivers say.
        nodes: the cluster.
        overrides: of the configuration.
        seed: of kinds and moments.
    """

    def __init__(self, store: Store, log: Path, nodes: Nodes, overrides: list[str], seed: int):
        self.store, self.log, self.nodes, self.overrides = store, log, nodes, overrides
        self.random = random.Random(seed)
        self.driver = self._command()
        self.starts = 1
        self.kills: list[dict] = []

    def _command(self) -> subprocess.Popen:
        return start("run", "s3://runs", *RUN, *self.overrides, output=self.log.open("a"))

    def tend(self) -> bool:
        """What an operator or an autoscaler does: start again, replace; whether the run has ended well."""
        self.nodes.replace_lost()
        status = self.driver.poll()
        if status is None:
            return False
        if status == 0:
            return True
        if status in (2, 130):
            raise RuntimeError(f"the driver ended with {status}: {self.log.read_text()[-2000:]}")
        self.driver = self._command()
        self.starts += 1
        return False

    def wait_until_beyond(self, position: tuple[int, int], timeout: float = 300) -> bool:
        """Until training is beyond `position`; False when the run ended before."""
        end = time.monotonic() + timeout
        while self.store.place() <= position:
            if self.tend():
                return False
            if time.monotonic() > end:
                raise TimeoutError(f"training has not gone beyond {position} within {timeout} s")
            time.sleep(0.1)
        return True

    def strike(self) -> bool:
        """One kill at a random moment, and the wait until what it cost is made good; False when the run has ended."""
        if not self.wait_until_beyond(self.kills[-1]["at"] if self.kills else (0, 0)):
            return False
        time.sleep(self.random.uniform(0.0, 3.0))
        kind, when = self.random.choice(KINDS), time.monotonic()
        if kind.startswith("driver"):
            self.driver.kill()
            self.driver.wait()
            if kind != "driver":
                self.store.move_the_lock()
        elif kind == "worker":
            workers = training_processes(self.nodes, ("RayTrainWorker",))
            if not workers:
                return True  # between two groups: nothing to kill, try again later
            self.random.choice(workers).kill()
        else:
            self.nodes.kill(self.random.randrange(len(self.nodes.joined)))
            self.nodes.join()
        at = self.store.place()  # not from before the kill: what was on its way then is no recovery
        ended = not self.wait_until_beyond(at)
        self.kills.append({"kind": kind, "at": at, "seconds": time.monotonic() - when})
        print(
            f"kill {len(self.kills)}: {kind} at {at}, beyond it again after {self.kills[-1]['seconds']:.0f} s",
            flush=True,
        )
        return not ended

    def finish(self, timeout: float = 1200) -> None:
        """Let the run end."""
        end = time.monotonic() + timeout
        while not self.tend():
            if time.monotonic() > end:
                raise TimeoutError(f"the run did not end within {timeout} s")
            time.sleep(0.2)


def check(storage: str) -> dict[str, float]:
    """Everything whole: artefacts by hash, history without gaps or duplicates; the last figures of both phases."""
    run = open_run(parse_config({"name": "tiny", "storage": storage}))
    assert {"data", "train", "samples", "evaluation", "report"} <= set(verify(run))
    assert run.folder.files("model/*.safetensors") == ["model/model.safetensors"]
    assert not run.folder.exists(LOCK)
    lines = read_history(run.folder)
    epochs = [line["epoch"] for line in lines if line["phase"] == "autoencoder"]
    steps = [line["step"] for line in lines if line["phase"] == "sampler"]
    assert epochs == list(range(1, len(epochs) + 1)), epochs
    assert steps == sorted(set(steps)), steps
    assert {b - a for a, b in zip([0, *steps], steps, strict=False)} == {steps[0]}, steps
    first, last = lines[len(epochs) - 1], lines[-1]
    names = ("validation_sliced_wasserstein", "variance_ratio")
    return {"validation_mse": first["validation_mse"]} | {name: last[name] for name in names}


def undisturbed(storage: Path, overrides: list[str], seed: int) -> dict[str, float]:
    """Figures of a run that nobody kills, on a Ray of its own and a local disk."""
    storage.mkdir()
    with (storage / "log").open("w") as log:
        process = start("run", storage, *RUN, *overrides, f"seed={seed}", "train.num_workers=1", output=log)
        assert process.wait() == 0, (storage / "log").read_text()
    return check(str(storage))


def under_fire(kills: int, seed: int, overrides: list[str], root: Path) -> tuple[Chaos, dict[str, float]]:
    """The run with its kills, and its figures."""
    with s3_server(root / "s3.log") as port:
        os.environ.update(environment(port))
        store = Store(port)
        with faulty_proxy(port) as proxy, Nodes() as nodes:
            os.environ.update(nodes.environment | {"AWS_ENDPOINT_URL": proxy.url})
            nodes.wait_for_head()
            nodes.join()
            nodes.join()
            chaos = Chaos(store, root / "driver.log", nodes, overrides, seed)
            try:
                while len(chaos.kills) < kills and chaos.strike():
                    pass
                chaos.finish()
            finally:
                chaos.driver.kill()
            end = time.monotonic() + 60
            while training_processes(nodes) and time.monotonic() < end:
                time.sleep(0.5)
            assert not training_processes(nodes), "training processes are left behind"
            print(f"requests by what they met: {dict(proxy.met)}")
        for name in nodes.environment:
            os.environ.pop(name, None)
        os.environ.update(environment(port))
        return chaos, check("s3://runs")


def main(kills: int, seed: int, overrides: list[str], references: int = 3) -> list[dict]:
    """The whole harness; what it killed."""
    with tempfile.TemporaryDirectory(prefix="ldcvae-chaos-") as temporary:
        root, calm = Path(temporary), []
        for number in range(references):
            calm.append(undisturbed(root / f"calm-{number}", overrides, number))
            print(f"undisturbed, seed {number}: {calm[-1]}", flush=True)
        chaos, found = under_fire(kills, seed, overrides, root)
        print(f"after {len(chaos.kills)} kills and {chaos.starts} starts: {found}")
        for name, value in found.items() if calm else ():
            known = [figures[name] for figures in calm]
            spread = max(known) - min(known)
            assert min(known) - spread <= value <= max(known) + spread, (name, value, known)
        for kind in KINDS:
            seconds = [kill["seconds"] for kill in chaos.kills if kill["kind"] == kind]
            if seconds:
                median, worst = statistics.median(seconds), max(seconds)
                print(f"{kind}: {len(seconds)} kills, made good after {median:.0f} s, at worst {worst:.0f} s")
        print(f"run finished, one model, history complete, {len(chaos.kills)} kills")
        return chaos.kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--references", type=int, default=3, help="undisturbed runs to compare with")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    main(options.kills, options.seed, options.overrides, options.references)
