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
    copy = Path(shutil.copytree(Path(executor.__file__).parent, folder / executor.__name__)) / "__init__.py"
    change = re.search(r"sed -i '(.+?)'", (ROOT / "Dockerfile").read_text())[1]
    subprocess.run(["sed", "-i", change, copy], check=True)
    assert copy.read_text() != Path(executor.__file__).read_text()
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


def driver_job():
    """The containers of driver.yaml's Job, by name."""
    documents = yaml.safe_load_all((ROOT / "workflow/profiles/kubernetes/driver.yaml").read_text())
    (job,) = [document for document in documents if document["kind"] == "Job"]
    spec = job["spec"]["template"]["spec"]
    return {container["name"]: container for container in spec["initContainers"] + spec["containers"]}


@pytest.mark.long
def test_interrupting_the_driver_ends_its_pods(tmp_path, kubernetes):
    cluster = apiserver.Cluster(IMAGE)
    kubeconfig = str(cluster.kubeconfig(tmp_path / "config"))
    (tmp_path / "claim").mkdir()

    def another():
        """What a driver that is started now says before it submits anything."""
        command = [sys.executable, *driver_job()["nothing-runs"]["command"][1:]]
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
    # every package that it installs beyond the lock is pinned by the other one
    pins = (ROOT / "requirements-test.lock").read_text()
    installed = re.findall(r"snakemake-(?:executor|storage)-plugin-\w+", (ROOT / "Dockerfile").read_text())
    assert installed
    assert all(f"{name}==" in pins for name in installed)


@pytest.mark.long
def test_driver_manifest(ran):
    _, cluster, _ = ran
    documents = list(yaml.safe_load_all((ROOT / "workflow/profiles/kubernetes/driver.yaml").read_text()))
    assert {d["kind"] for d in documents} == {"PersistentVolumeClaim", "ServiceAccount", "Role", "RoleBinding", "Job"}
    for document in documents:
        kubernetes_validate.validate(document, apiserver.SCHEMA, strict=True)
    (role,) = [document for document in documents if document["kind"] == "Role"]
    allowed = {(verb, kind) for rule in role["rules"] for verb in rule["verbs"] for kind in rule["resources"]}
    assert cluster.calls <= allowed  # listing jobs, besides, is for the container nothing-runs
