"""The cluster files without a cloud: Ray's own validation, agreement of versions, nothing open, no secrets."""

import copy
import os
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY_UP = ("gpu.yaml", "gcp-gpu.yaml", "local.yaml")
CLOUDS = ("gpu.yaml", "gcp-gpu.yaml")
EVERY_FILE = sorted(path.name for path in CLUSTER.iterdir())
LOCK = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.M))
CUDA = ".".join(LOCK["cuda-toolkit"].split(".")[:2])


def load(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def rayjob():
    documents = list(yaml.safe_load_all((CLUSTER / "kuberay-rayjob.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["ServiceAccount", "RayJob"]
    return documents


def pods():
    spec = rayjob()[1]["spec"]["rayClusterSpec"]
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    return head["template"]["spec"], workers["template"]["spec"]


def container(pod):
    (only,) = pod["containers"]
    return only


def keys(tree):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from keys(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from keys(value)


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts_the_file(name):
    prepared = prepare_config(load(name))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


@pytest.mark.parametrize("name", RAY_UP)
def test_that_validation_sees_mistakes(name):
    wrong = load(name) | {"idle_minutes": 5}
    with pytest.raises(jsonschema.ValidationError, match="idle_minutes"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_are_scaled_from_zero_spot_before_on_demand(name):
    config = prepare_config(load(name))
    types = config["available_node_types"]
    assert config["idle_timeout_minutes"] <= 10
    assert config["provider"]["cache_stopped_nodes"] is False
    assert set(types) == {"head", "gpu_spot", "gpu_on_demand"}
    assert types["head"]["max_workers"] == 0
    assert types["head"]["resources"] == {"CPU": 0}
    spot, on_demand = types["gpu_spot"], types["gpu_on_demand"]
    assert spot["priority"] > on_demand["priority"]
    for workers in (spot, on_demand):
        assert workers["min_workers"] == 0
        assert 0 < workers["max_workers"] <= config["max_workers"]
        assert workers["resources"]["GPU"] == 1
    # The same machine, bought in two ways.
    bought = {"InstanceMarketOptions", "scheduling"}
    same = [{k: v for k, v in t["node_config"].items() if k not in bought} for t in (spot, on_demand)]
    assert same[0] == same[1]


def test_google_spot_nodes_are_spot_and_workers_have_their_own_account():
    types = load("gcp-gpu.yaml")["available_node_types"]
    assert types["gpu_spot"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "provisioningModel" not in types["gpu_on_demand"]["node_config"]["scheduling"]
    for name in ("gpu_spot", "gpu_on_demand"):
        (account,) = types[name]["node_config"]["serviceAccounts"]
        assert account["email"].startswith("ldcvae-worker@")
        # A GPU cannot be migrated live.
        assert types[name]["node_config"]["scheduling"]["onHostMaintenance"] == "TERMINATE"


@pytest.mark.parametrize("name", RAY_UP)
def test_local_state_stays_at_home_and_dependencies_come_from_the_lock(name):
    config = load(name)
    excluded = " ".join(config["rsync_exclude"])
    for part in (".git", ".venv", "runs"):
        assert part in excluded
    assert config["file_mounts"]["~/ldcvae"] == "."
    (setup,) = config["setup_commands"]
    assert "--constraint requirements.lock" in setup
    extras = set(re.findall(r"\[([\w,]+)\]", setup)[0].split(","))
    assert extras <= set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))


def test_ray_python_and_cuda_agree_everywhere():
    python = "{}{}".format(
        *re.search(r"requires-python = \">=(\d)\.(\d+)\"", (ROOT / "pyproject.toml").read_text()).groups()
    )
    images = {name: load(name)["docker"]["image"] for name in RAY_UP}
    images |= {f"pod {index}": container(pod)["image"] for index, pod in enumerate(pods())}
    images["Dockerfile"] = re.search(r"^FROM (\S+)", (CLUSTER / "Dockerfile").read_text(), re.M)[1]
    tags = {name: image.rpartition(":")[2] for name, image in images.items()}
    (tag,) = set(tags.values())
    ray_version, python_tag, cuda_tag = tag.split("-")
    assert ray_version == LOCK["ray"]
    assert python_tag == f"py{python}"
    # torch brings its own CUDA. A base image with a newer one would ask for a newer driver than torch needs.
    assert int(cuda_tag.removeprefix("cu")) <= int(CUDA.replace(".", ""))
    assert rayjob()[1]["spec"]["rayClusterSpec"]["rayVersion"] == LOCK["ray"]
    for name in EVERY_FILE:
        text = (CLUSTER / name).read_text()
        assert set(re.findall(r"\b2\.\d+\.\d+(?=[-\"])", text)) <= {LOCK["ray"]}, name
        assert set(re.findall(r"cuda>=([\d.]+)", text)) <= {CUDA}, name
    for name in (*RAY_UP, "Dockerfile"):
        assert f"NVIDIA_REQUIRE_CUDA={CUDA}" in re.sub(r'="?cuda>=', "=", (CLUSTER / name).read_text()), name


@pytest.mark.parametrize("name", EVERY_FILE)
def test_no_file_holds_a_secret(name):
    text = (CLUSTER / name).read_text()
    for pattern in (
        r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",  # AWS
        r"-----BEGIN",
        r"\bAIza[0-9A-Za-z_-]{30,}",  # Google
        r"\bgh[pousr]_[0-9A-Za-z]{30,}",
        r"(?i)\b(password|passwd|secret|secret_?access_?key|api_?key|access_key_id)\b\s*[:=]\s*\S",
        r"\b[0-9a-f]{40,}\b",
        r"\b(?=[A-Za-z0-9+/]*\d)(?=[A-Za-z0-9+/]*[A-Z])[A-Za-z0-9+/]{40,}={0,2}\b",
    ):
        assert not re.search(pattern, text), pattern


@pytest.mark.parametrize("name", RAY_UP)
def test_dashboard_on_loopback_and_tokens_required(name):
    config = prepare_config(load(name))
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in (CLUSTER / name).read_text()
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in command
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_kubernetes_opens_nothing_and_grants_by_service_account():
    account, job = rayjob()
    for pod in pods():
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        assert container(pod)["securityContext"]["runAsNonRoot"] is True
        assert container(pod)["securityContext"]["allowPrivilegeEscalation"] is False
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert not {"hostNetwork", "hostPort", "hostPath", "nodePort", "privileged"} & set(keys(job))
    assert not {"secretKeyRef", "secretRef"} & set(keys(job))  # access comes with the identity


def test_kubernetes_job_ends_with_its_machines():
    spec = rayjob()[1]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True  # KubeRay demands it for suspend
    assert spec["suspend"] is False
    assert spec["ttlSecondsAfterFinished"] <= 600
    assert spec["activeDeadlineSeconds"] > 0
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == workers["replicas"] == 0 < workers["maxReplicas"]
    head, worker = (container(pod)["resources"] for pod in pods())
    assert worker["limits"]["nvidia.com/gpu"] == worker["requests"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in head["limits"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_kubernetes_entrypoint_is_a_valid_command():
    from pipeline.config.load import load_config

    words = rayjob()[1]["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "pipeline.run", "--config"]
    config_file = ROOT / words[4].removeprefix("/home/ray/ldcvae/")
    config = load_config(config_file, words[5:])
    (workers,) = rayjob()[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert config.train.device == "cuda"  # auto sees no GPU before the first one is there
    assert config.train.num_workers <= workers["maxReplicas"]
    assert config.storage.startswith("s3://")


def strict(schema):
    """The CRD's schema as the API server enforces it with --validate=strict: no unknown fields."""
    schema = copy.deepcopy(schema)
    stack = [schema]
    while stack:
        node = stack.pop()
        if not isinstance(node, dict):
            continue
        if node.pop("x-kubernetes-int-or-string", False):
            node.pop("anyOf", None)
            node["type"] = ["integer", "string"]
        if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
        stack += list(node.get("properties", {}).values())
        stack += [node.get("items"), node.get("additionalProperties")]
    # The API server knows these itself.
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@pytest.mark.skipif("KUBERAY_CRD" not in os.environ, reason="KUBERAY_CRD: path of KubeRay's ray.io_rayjobs.yaml")
def test_the_job_fits_kuberays_schema():
    crd = yaml.safe_load(Path(os.environ["KUBERAY_CRD"]).read_text())
    (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
    validator = jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))
    job = rayjob()[1]
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(job)] == []
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 4
    (error,) = validator.iter_errors(job)
    assert "maxReplica" in error.message


def test_the_image_has_what_the_code_needs():
    text = (CLUSTER / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text()
    assert "--constraint requirements.lock" in text
    copied = [word for line in re.findall(r"^COPY --chown=\S+ (.+)$", text, re.M) for word in line.split()[:-1]]
    packages = re.search(r"packages = (\[.+\])", (ROOT / "pyproject.toml").read_text())[1]
    for name in [*copied, *yaml.safe_load(packages)]:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored.splitlines(), name
        assert name in copied, name
