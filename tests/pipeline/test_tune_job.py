"""The blocks of docs/stages.md and docs/tuning.md that submit a Ray job, run as they stand on loopback."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import psutil
import pytest
from nodes import free_ports
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from processes import ROOT, TINY

BLOCK, STAGES = (
    re.search(r"^```sh\n(export RAY_AUTH_MODE=token\n.*?)^```", (ROOT / name).read_text(), re.M | re.S)[1]
    for name in ("docs/tuning.md", "docs/stages.md")
)
SEARCH = ["tune.num_samples=1", "tune.num_images=200", "tune.draws=1", "tune.reports=2", "sampler.particles=128"]


def lines(word: str) -> list[str]:
    return [line for line in BLOCK.splitlines() if line.startswith(word)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Ray's head as the block starts it, on ports and in folders of its own; yields how to run a shell line there."""
    home = tmp_path_factory.mktemp("home")
    # Ray's sockets lie in its temporary folder, and a socket's path may have 107 characters only.
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/rayjobXXXX"], text=True).strip())
    names = (
        "port",
        "dashboard-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "metrics-export-port",
        "ray-client-server-port",
    )
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_worker_niceness": "0",
    }

    def shell(line: str, **more) -> subprocess.CompletedProcess:
        line = line.replace(":8265", f":{ports['dashboard-port']}")
        return subprocess.run(
            ["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, **more
        )

    assert shell(lines("ray get-auth-token")[0]).returncode == 0
    assert (home / ".ray" / "auth_token").exists()
    options = " ".join(f"--{name} {port}" for name, port in ports.items())
    small = f"--num-cpus 2 --object-store-memory 200000000 --temp-dir {folder}"
    began = shell(f"{lines('ray start')[0]} {small} {options}")
    assert began.returncode == 0, began.stdout + began.stderr
    ours = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]
    assert ours
    try:
        yield shell, home
    finally:
        # `ray stop` would stop every Ray of this machine.
        family = {child for process in ours for child in [process, *process.children(recursive=True)]}
        for process in family:
            if process.is_running():
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=20)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_the_readmes_block_is_the_one_that_runs_here_with_another_stage():
    assert BLOCK.replace("python -m pipeline.tune", "python -m pipeline.run") == STAGES


@pytest.mark.slow
def test_the_documented_job_searches_and_ends_well(cluster):
    shell, home = cluster
    assert any(line.startswith("ray stop") for line in BLOCK.splitlines())
    words = " ".join(f"'{word}'" for word in [*TINY[:-1], *SEARCH])  # a job takes the cluster's CPUs as they are
    submit = lines("ray job submit")[0]
    assert submit.endswith("python -m pipeline.tune storage=$HOME/ldcvae-runs")
    done = shell(f"{submit} {words}")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "tune: 1/1 trials" in output
    assert "tune: done in" in output
    tune = home / "ldcvae-runs/tiny/tune"
    storage = JournalStorage(JournalFileBackend(str(tune / "study.log")))
    [name] = optuna.get_all_study_names(storage)
    states = [trial.state for trial in optuna.load_study(study_name=name, storage=storage).trials]
    assert states == [TrialState.COMPLETE]
    assert (tune / "best.yaml").exists()


@pytest.mark.slow
def test_a_job_gets_code_and_configurations_and_nothing_else_and_fails_by_its_status(cluster):
    shell, _ = cluster
    submit, _, command = lines("ray job submit")[0].partition(" -- ")
    found = 'ls -A | tr "\\n" " "; du -sb .'
    failed = shell(f"{submit} -- sh -c '{found}; exec {command} name=bad tune.num_samples=0'")
    assert failed.returncode == 1
    assert "tune.num_samples: Input should be greater than or equal to 1" in failed.stdout + failed.stderr
    found = re.search(r"^configs ldcvae pipeline (\d+)", failed.stdout, re.M)
    assert found, failed.stdout
    assert int(found[1]) < 1.25 * 2**20


@pytest.mark.slow
def test_the_cluster_refuses_a_wrong_token(cluster):
    shell, _ = cluster
    refused = shell(f"RAY_AUTH_TOKEN={'0' * 64} {lines('ray job submit')[0]}")
    assert refused.returncode != 0
    assert re.search("unauthori[sz]ed|401|403|invalid|authentication", (refused.stdout + refused.stderr).lower())
