"""Kill a running pipeline again and again, and check that nothing was lost. `make chaos` runs it.

    python tests/pipeline/chaos.py [--kills 20] [--seed 0] [key=value …]

Starts a Ray cluster of three nodes on this machine and `python -m pipeline.run` on it with one or two workers. At
random moments, always after training has moved on, it sends SIGKILL to the driver, to a training worker or to all
processes of a node; a killed driver is started again with the same command, a killed node replaced by a new one.
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

import psutil
from nodes import Nodes
from processes import start

from pipeline.config.load import parse_config
from pipeline.store.run import open_run

EPOCHS, STEPS, EVERY = 400, 2000, 5
RUN = [
    f"train.epochs={EPOCHS}",
    f"train.checkpoint_epochs={EVERY}",
    f"sampler.steps={STEPS}",
    f"sampler.checkpoint_steps={STEPS // 40}",
    "train.num_workers=[1,2]",
    "train.max_failures=1000",
]
STAGES = ("data", "train", "samples", "evaluation", "report")
KINDS = ("driver", "worker", "node")


def history(storage: Path) -> list[dict]:
    """Records of training so far; none while there is no file yet."""
    path = storage / "tiny" / "train" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def place(storage: Path) -> tuple[int, int]:
    """How far training is: the phase, and epoch or step in it."""
    lines = history(storage)
    if not lines:
        return (0, 0)
    last = lines[-1]
    return (0, last["epoch"]) if last["phase"] == "autoencoder" else (1, last["step"])


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
        storage: folder of runs.
        nodes: the cluster.
        overrides: of the configuration.
        seed: of kinds and moments.
    """

    def __init__(self, storage: Path, nodes: Nodes, overrides: list[str], seed: int):
        self.storage, self.nodes, self.overrides = storage, nodes, overrides
        self.random = random.Random(seed)
        self.driver = self._command()
        self.starts = 1
        self.kills: list[dict] = []

    def _command(self) -> subprocess.Popen:
        log = (self.storage / "driver.log").open("a")
        return start("run", self.storage, *RUN, *self.overrides, output=log)

    def tend(self) -> bool:
        """What an operator or an autoscaler does: start again, replace; whether the run has ended well."""
        self.nodes.replace_lost()
        status = self.driver.poll()
        if status is None:
            return False
        if status == 0:
            return True
        if status in (2, 130):
            raise RuntimeError(f"the driver ended with {status}: {self.storage / 'driver.log'}")
        self.driver = self._command()
        self.starts += 1
        return False

    def wait_until_beyond(self, position: tuple[int, int], timeout: float = 300) -> bool:
        """Until training is beyond `position`; False when the run ended before."""
        end = time.monotonic() + timeout
        while place(self.storage) <= position:
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
        kind, at, when = self.random.choice(KINDS), place(self.storage), time.monotonic()
        if kind == "driver":
            self.driver.kill()
            self.driver.wait()
        elif kind == "worker":
            workers = training_processes(self.nodes, ("RayTrainWorker",))
            if not workers:
                return True  # between two groups: nothing to kill, try again later
            self.random.choice(workers).kill()
        else:
            self.nodes.kill(self.random.randrange(len(self.nodes.joined)))
            self.nodes.join()
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


def check(storage: Path) -> dict[str, float]:
    """Everything whole: artefacts by hash, history without gaps or duplicates; the last figures of both phases."""
    run = open_run(parse_config({"name": "tiny", "storage": str(storage)}))
    for stage in STAGES:
        for name, entry in run.manifest(stage).outputs.items():
            run.folder.read_verified(name, entry["sha256"])
    assert run.folder.files("model/*.safetensors") == ["model/model.safetensors"]
    lines = history(storage)
    epochs = [line["epoch"] for line in lines if line["phase"] == "autoencoder"]
    steps = [line["step"] for line in lines if line["phase"] == "sampler"]
    assert epochs == list(range(1, len(epochs) + 1)), epochs
    assert steps == sorted(set(steps)), steps
    assert {b - a for a, b in zip([0, *steps], steps, strict=False)} == {steps[0]}, steps
    first, last = lines[len(epochs) - 1], lines[-1]
    names = ("validation_sliced_wasserstein", "variance_ratio")
    return {"validation_mse": first["validation_mse"]} | {name: last[name] for name in names}


def undisturbed(storage: Path, overrides: list[str], seed: int) -> dict[str, float]:
    """Figures of a run that nobody kills, on a Ray of its own."""
    environment = {
        key: os.environ.pop(key) for key in list(os.environ) if key.startswith("RAY_AUTH") or key == "RAY_ADDRESS"
    }
    try:
        with (storage / "log").open("w") as log:
            process = start("run", storage, *RUN, *overrides, f"seed={seed}", "train.num_workers=1", output=log)
            assert process.wait() == 0, (storage / "log").read_text()
    finally:
        os.environ.update(environment)
    return check(storage)


def main(kills: int, seed: int, overrides: list[str], references: int = 3) -> list[dict]:
    """The whole harness; what it killed."""
    with tempfile.TemporaryDirectory(prefix="ldcvae-chaos-") as root:
        calm = []
        for number in range(references):
            folder = Path(root) / f"calm-{number}"
            folder.mkdir()
            calm.append(undisturbed(folder, overrides, number))
            print(f"undisturbed, seed {number}: {calm[-1]}", flush=True)
        storage = Path(root) / "chaos"
        storage.mkdir()
        with Nodes() as nodes:
            os.environ.update(nodes.environment)
            nodes.wait_for_head()
            nodes.join()
            nodes.join()
            chaos = Chaos(storage, nodes, overrides, seed)
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
        for name in nodes.environment:
            os.environ.pop(name, None)
        found = check(storage)
        print(f"after {len(chaos.kills)} kills and {chaos.starts} starts: {found}")
        for name, value in found.items():
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
