"""Which commit results are traced to: that of the repository which tracks the code, and no other's."""

import os
import shutil
import subprocess
import sys

import pytest
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
