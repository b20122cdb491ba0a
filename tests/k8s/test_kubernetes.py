"""The Kubernetes profile: Snakemake's executor and storage plug-ins for real, against a stand-in cluster; the image."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import apiserver
import kubernetes_validate
import pytest
import snakemake_executor_plugin_kubernetes as executor
import yaml
from helpers import ROOT, Project, wait_for

BIN = Path(sys.executable).parent
SETTINGS = {
    "CONSISTENCY_IMAGE": "registry.example/consistency:1",
    "CONSISTENCY_NAMESPACE": "lab",
    "CONSISTENCY_CLAIM": "lab-data",
}
CHANGES = {
    "gpu": 1,
    "mem_mb": 3000,
    "classifier": {"training": {"steps": 4000, "checkpoint_every": 100}},
    "evaluation": {"count": 32},
}


def project(folder):
    """A checkout under git, as the driver needs it."""
    project = Project(folder)
    project.configure(CHANGES)
    for command in ("init --quiet", "add --all", "-c user.name=a -c user.email=a@b.c commit --quiet --message a"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    return project


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory):
    """Settings of a driver, with the executor plug-in as the image has it on PYTHONPATH; it uses git and rsync."""
    folder = tmp_path_factory.mktemp("plugin")
    package = Path(shutil.copytree(Path(executor.__file__).parent, folder / executor.__name__))
    # Outside a repository, as in the image: inside one, git would leave out what the repository does not track.
    surroundings = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    command = ["git", "-C", folder, "apply", ROOT / "workflow/profiles/kubernetes/plugin.patch"]
    subprocess.run(command, check=True, env=surroundings)
    assert (package / "__init__.py").read_text() != Path(executor.__file__).read_text()
    return SETTINGS | {"PYTHONPATH": str(folder)}


def start(settings, folder, *arguments, stdout=subprocess.PIPE, **variables):
    """Snakemake as the driver starts it."""
    environment = {k: v for k, v in os.environ.items() if k != "KUBECONFIG"} | settings | variables
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's shell ignores it
    )


IMAGE = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": os.environ["HOME"], "PIP_NO_DEPS": "1"}
ARGUMENTS = (
    "--workflow-profile",
    "kubernetes",
    "--seconds-between-status-checks",
    "1",
    "results/digits/metrics/data.json",
)


@pytest.mark.parametrize("profile", [("--workflow-profile", "kubernetes"), ("--profile", "profiles/kubernetes")])
def test_dry_run(tmp_path, kubernetes, profile):
    folder = project(tmp_path).folder
    driver = start(kubernetes, folder, *profile, "--dry-run")
    printed, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, printed
    assert f"output: {folder}/results/digits/data.safetensors (send to storage)" in printed
    assert "mem_mb=3000" in printed
    assert "gpu=1" in printed


@pytest.fixture(scope="module")
def ran(tmp_path_factory, kubernetes):
    """A run in which train_classifier's first pod fails and its second is taken away, both after a checkpoint."""
    folder = project(tmp_path_factory.mktemp("claim")).folder
    checkpoint = folder / "results/digits/checkpoints/classifier/checkpoint.pt"
    trouble = [lambda pod: pod.kill(), lambda pod: pod.lose()]

    def started(pod):
        if "train_classifier" in pod.command and trouble:
            act, before = trouble.pop(0), checkpoint.exists() and checkpoint.stat().st_mtime_ns
            wait_for(
                lambda: (checkpoint.exists() and checkpoint.stat().st_mtime_ns) != before,
                "a new checkpoint",
                300,
                process=pod.process,
                seen=pod.log,
            )
            act(pod)

    cluster = apiserver.Cluster(IMAGE, started)
    kubeconfig = cluster.kubeconfig(tmp_path_factory.mktemp("home") / "config")
    # noise: a job without a GPU
    driver = start(kubernetes, folder, *ARGUMENTS, "results/digits/noise.safetensors", KUBECONFIG=str(kubeconfig))
    printed, _ = driver.communicate(timeout=600)
    cluster.stop()
    assert driver.returncode == 0, printed + "".join(pod.log() for pod in cluster.pods)
    return folder, cluster, printed


def of_rules(cluster, *rules):
    """Rule and pod, of these rules, in the order of their start."""
    named = [(re.search(r"--allowed-rules (\w+)", pod.command)[1], pod) for pod in cluster.pods]
    return [(rule, pod) for rule, pod in named if rule in rules]


@pytest.mark.long
def test_pods_that_fail_or_are_taken_away_continue_from_their_checkpoint(ran):
    folder, cluster, printed = ran
    found = of_rules(cluster, "train_classifier", "measure_data")
    assert [rule for rule, _ in found] == [*["train_classifier"] * 3, "measure_data"]
    assert [pod.process.returncode for _, pod in found] == [-9, -9, 0, 0]
    assert len(cluster.pods) == len(found) + 1  # draw_noise; prepare_data is local: the driver runs it
    assert printed.count("Trying to restart job") == 2
    log = (folder / "results/logs/digits/train_classifier.log").read_text()
    assert int(re.search(r"resumed at step (\d+) of 4000", log)[1]) > 100
    (kept,) = (folder / ".snakemake").rglob("kubernetes-logs/*.log")  # of the pod that failed
    assert "rule train_classifier" in kept.read_text()
    assert not cluster.secrets  # none is left behind


@pytest.mark.long
def test_results_are_on_the_claim_and_traced_to_the_commit(ran):
    folder, *_ = ran
    metrics = json.loads((folder / "results/digits/metrics/data.json").read_text())
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=folder, text=True).strip()
    assert metrics["environment"]["git_commit"].removesuffix("-dirty") == commit
    assert (folder / "results/digits/classifier/model.safetensors").is_file()
    assert not (folder / "results/digits/checkpoints/classifier").exists()
    copies = (folder / ".snakemake/storage").rglob("*")
    names = {path.name for path in copies if path.is_file()}
    assert names == {"prepare_data.log"}  # of the rule that the driver runs; the others are the pods' own


@pytest.mark.long
def test_what_a_pod_is_given(ran):
    folder, cluster, _ = ran
    found = of_rules(cluster, "train_classifier", "draw_noise")
    specs = {rule: pod.manifest["spec"]["template"]["spec"] for rule, pod in found}
    train, noise = specs["train_classifier"], specs["draw_noise"]
    (container,) = train["containers"]
    assert container["image"] == SETTINGS["CONSISTENCY_IMAGE"]
    asked = {"memory": "3000M", "nvidia.com/gpu": "1", "ephemeral-storage": "20000M"}
    for part in ("requests", "limits"):
        assert {key: container["resources"][part][key] for key in asked} == asked
    assert {"name": "lab-data", "mountPath": str(folder)} in container["volumeMounts"]
    assert {"name": "lab-data", "persistentVolumeClaim": {"claimName": "lab-data"}} in train["volumes"]
    assert train["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "nvidia.com/gpu" not in noise["containers"][0]["resources"]["limits"]
    assert cluster.namespaces == {"lab"}
    # the server refused none: no pod could gain rights; and none has a token for it
    for spec in (train, noise):
        assert apiserver.restricted(spec) == []
        assert spec["serviceAccountName"] in without_token()


def documents(kind):
    """The documents of this kind in driver.yaml."""
    text = (ROOT / "workflow/profiles/kubernetes/driver.yaml").read_text(encoding="utf-8")
    return [document for document in yaml.safe_load_all(text) if document["kind"] == kind]


def without_token():
    """Names of driver.yaml's accounts whose pods get no token for the API server."""
    accounts = documents("ServiceAccount")
    return {account["metadata"]["name"] for account in accounts if account.get("automountServiceAccountToken") is False}


def driver_pod():
    """The spec of driver.yaml's pod."""
    (job,) = documents("Job")
    return job["spec"]["template"]["spec"]


def driver_containers():
    """The containers of driver.yaml's pod, by name."""
    spec = driver_pod()
    return {container["name"]: container for container in spec["initContainers"] + spec["containers"]}


@pytest.mark.long
def test_interrupting_the_driver_ends_its_pods(tmp_path, kubernetes):
    cluster = apiserver.Cluster(IMAGE)
    kubeconfig = str(cluster.kubeconfig(tmp_path / "config"))
    (tmp_path / "claim").mkdir()

    def another():
        """What a driver that is started now says before it submits anything."""
        command = [sys.executable, *driver_containers()["nothing-runs"]["command"][1:]]
        variables = os.environ | {"KUBECONFIG": kubeconfig, "NAMESPACE": "lab"}
        return subprocess.run(command, capture_output=True, text=True, env=variables)

    folder = project(tmp_path / "claim").folder
    with open(tmp_path / "said.txt", "w") as said:
        driver = start(kubernetes, folder, *ARGUMENTS, KUBECONFIG=kubeconfig, stdout=said)
    try:
        wait_for(
            lambda: cluster.pods and ("get", "jobs/status") in cluster.calls,
            "a job whose state the driver asks for",
            300,
            process=driver,
            seen=(tmp_path / "said.txt").read_text,
        )
        assert another().stderr.startswith("Jobs of a run are there")
        driver.send_signal(signal.SIGINT)  # what driver.yaml does when its Job is deleted
        driver.wait(timeout=120)
        assert driver.returncode != 0
        assert [pod.process.poll() for pod in cluster.pods] == [-9], (tmp_path / "said.txt").read_text()
        assert not cluster.secrets
        assert another().returncode == 0
    finally:
        driver.kill()
        cluster.stop()


@pytest.mark.needs("hadolint")
def test_image_file():
    hadolint = shutil.which("hadolint", path=f"{BIN}:{os.environ['PATH']}")
    checked = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_image_is_built_of_what_a_hash_names():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    bases = re.findall(r"^ARG BASE=(.+)$", text, re.M)
    assert len(bases) == 1
    assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", bases[0]), (
        f"expected NAME:TAG@sha256:…, not {bases[0]}"
    )
    assert re.findall(r"^FROM (.+)$", text, re.M) == ["${BASE}"]
    fetches = re.findall(r"pip (?:install|download) (.+?)(?= &&|$)", text.replace("\\\n", " "), re.M)
    assert len(fetches) == 4, fetches
    for arguments in fetches:
        hashed = "--require-hashes" in arguments and "--no-deps" in arguments
        assert hashed or arguments.split() == ["--no-cache-dir", "--requirement", "/opt/requirements-torch.lock"]


def test_driver_manifest():
    kinds = ["Namespace", "PersistentVolumeClaim", "ServiceAccount", "Role", "RoleBinding", "Job"]
    every = [document for kind in kinds for document in documents(kind)]
    text = (ROOT / "workflow/profiles/kubernetes/driver.yaml").read_text(encoding="utf-8")
    assert len(every) == len(list(yaml.safe_load_all(text))) == 7
    for document in every:
        kubernetes_validate.validate(document, apiserver.SCHEMA, strict=True)
    (namespace,) = documents("Namespace")
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    assert {d["metadata"]["namespace"] for d in every[1:]} == {namespace["metadata"]["name"]}
    (binding,), (role,) = documents("RoleBinding"), documents("Role")
    assert [subject["name"] for subject in binding["subjects"]] == [driver_pod()["serviceAccountName"]]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert without_token() == {"consistency-jobs"}  # bound to no role, see above


def test_the_namespace_admits_the_driver_with_nothing_left_out():
    assert apiserver.restricted(driver_pod()) == []
    for container in driver_containers().values():
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, container["name"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/tmp"}
        assert {"name": "HOME", "value": "/tmp"} in container["env"]
    for key in ("runAsNonRoot", "seccompProfile"):
        spec = driver_pod()
        del spec["securityContext"][key]
        names = {line.partition(":")[0] for line in apiserver.restricted(spec)}
        assert names == set(driver_containers()), f"without {key} the pod was admitted"
    for name in driver_containers():
        for key in ("allowPrivilegeEscalation", "capabilities"):
            spec = json.loads(json.dumps(driver_pod()))  # without the anchors that containers share
            (container,) = [c for c in spec["initContainers"] + spec["containers"] if c["name"] == name]
            del container["securityContext"][key]
            (line,) = apiserver.restricted(spec)
            assert line.startswith(f"{name}: {key}"), line


@pytest.mark.long
def test_the_driver_has_no_more_rights_than_it_uses(ran):
    _, cluster, _ = ran
    (role,) = documents("Role")
    allowed = {(verb, kind) for rule in role["rules"] for verb in rule["verbs"] for kind in rule["resources"]}
    assert allowed == cluster.calls | {("list", "jobs")}  # the container nothing-runs lists them
