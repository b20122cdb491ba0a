"""Which commit results are traced to: that of the repository which tracks the code, and no other's."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from consistency.runtime import provenance
from helpers import ROOT

ASK = "import sys; sys.path.insert(0, 'workflow'); from consistency.runtime import provenance; print(provenance.git_commit())"


@pytest.fixture
def repository(tmp_path):
    """A repository, and a folder in it with a copy of the library that it does not track."""
    top = tmp_path / "top"
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "CONSISTENCY_COMMIT"))
    }
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}

    class Repository:
        folder = top / "pipeline"

        def git(self, *command, folder=top):
            command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *command]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        def traced_commit(self, **more):
            command = [sys.executable, "-c", ASK]
            done = subprocess.run(command, cwd=self.folder, env=environment | more, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

    top.mkdir()
    repository = Repository()
    repository.git("init", "--quiet")
    repository.git("commit", "--quiet", "--allow-empty", "--message", "dotfiles")
    shutil.copytree(ROOT / "workflow", repository.folder / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    return repository


def commit(repository, folder):
    repository.git("add", "--all", folder=folder)
    repository.git("commit", "--quiet", "--message", "pipeline", folder=folder)
    return repository.git("rev-parse", "HEAD", folder=folder)


def test_a_repository_above_that_does_not_track_the_code(repository):
    assert repository.traced_commit() == "None"
    assert repository.traced_commit(CONSISTENCY_COMMIT="abc") == "abc"
    (repository.folder.parent / ".gitignore").write_text("pipeline\n")
    commit(repository, repository.folder.parent)
    assert repository.traced_commit() == "None"


def test_a_repository_above_that_tracks_the_code(repository):
    head = commit(repository, repository.folder.parent)
    assert repository.traced_commit() == head
    with open(repository.folder / "workflow/Snakefile", "a") as file:
        file.write("\n")
    assert repository.traced_commit() == f"{head}-dirty"


def test_a_repository_of_its_own_below_another(repository):
    repository.git("init", "--quiet", folder=repository.folder)
    assert repository.traced_commit() == "None"  # nothing is committed
    head = commit(repository, repository.folder)
    assert repository.traced_commit() == head
    other = repository.folder.parent / ".git"  # as in a hook of the other
    assert repository.traced_commit(GIT_DIR=str(other), GIT_WORK_TREE=str(other.parent)) == head


@pytest.mark.needs("root")
def test_another_owner_of_the_checkout(repository):
    """Git refuses it; its code is run all the same, so its commit is told. Not where only the repository is another's."""
    head = commit(repository, repository.folder.parent)
    for path in (repository.folder.parent, *repository.folder.parent.rglob("*")):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    refused = subprocess.run(["git", "describe", "--always"], cwd=repository.folder, capture_output=True, text=True)
    if "dubious ownership" not in refused.stderr:
        pytest.skip("this git takes the repositories of others, or is told to")
    assert repository.traced_commit() == head
    os.chown(repository.folder / "workflow/consistency/runtime/provenance.py", 0, 0)
    assert repository.traced_commit() == "None"


def test_without_git(repository, tmp_path):
    commit(repository, repository.folder.parent)
    assert repository.traced_commit(PATH=str(tmp_path)) == "None"


SKYLAKE = "fpu avx avx2 fma avx512f avx512dq avx512bw avx512vl"


@pytest.mark.parametrize("chosen", ["avx2", "default", "no such", None])
def test_without_torch_the_instruction_set_is_what_torch_says(chosen):
    """And torch is not imported to learn it. Told to use AVX-512, torch does so where the processor has none."""
    ask = (
        "import sys; sys.path.insert(0, 'workflow'); from consistency.runtime.provenance import environment as of; "
        "before = of(); assert 'torch' not in sys.modules; import torch; after = of(); assert before == after, after; "
        "print(after['cpu'], after['instruction_set'], torch.backends.cpu.get_cpu_capability(), sep='|')"
    )
    surroundings = {key: value for key, value in os.environ.items() if key not in provenance._CPU_VARIABLES}
    surroundings |= {"ATEN_CPU_CAPABILITY": chosen} if chosen else {}
    if "flags" not in provenance._processor():
        pytest.skip("without torch it is known of x86 alone")
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model, said, by_torch = done.stdout.strip().split("|")
    assert model
    assert said == by_torch
    assert said == {"avx2": "AVX2", "default": "DEFAULT"}.get(chosen, said)


@pytest.mark.parametrize(
    ("cpuinfo", "model", "instruction_set"),
    [
        (
            f"processor : 0\nmodel name\t: Xeon: Gold\nflags\t\t: {SKYLAKE}\n\nmodel name : other\n",
            "Xeon: Gold",
            "AVX512",
        ),
        (f"model name : Xeon\nflags : {SKYLAKE.replace('avx512vl', '')}\n", "Xeon", "AVX2"),
        ("model name : Core\nflags : fpu avx avx2\n", "Core", "DEFAULT"),
        ("processor : 0\nFeatures : fp asimd sve\n", "some machine", None),  # ARM
        ("\xff", "some machine", None),
        (None, "Apple M9", None),
    ],
)
def test_processors_of_other_machines(tmp_path, monkeypatch, cpuinfo, model, instruction_set):
    monkeypatch.setattr(provenance, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(provenance.platform, "machine", lambda: "some machine")
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "sysctl").write_text("#!/bin/sh\necho Apple M9\n")
    (tmp_path / "sysctl").chmod(0o755)
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="latin-1")
    said = provenance.environment()
    assert (said["cpu"], said["instruction_set"]) == (model, instruction_set)
    assert said["cpu_variables"] == {"MKL_CBWR": "AVX2"}
    (tmp_path / "sysctl").write_text("#!/bin/sh\nexit 1\n")
    if cpuinfo is None:
        assert provenance.environment()["cpu"] == "some machine"


def test_the_instruction_set_of_a_job_that_computes_is_torchs_own():
    assert provenance.environment()["instruction_set"] == torch.backends.cpu.get_cpu_capability()
