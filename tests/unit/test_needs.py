"""What tests need is declared: with little on the PATH they are skipped, with CI=true they end as errors at once."""

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest
from helpers import ROOT

# What the README's reader has.
THERE = ("git", "make", "python3", "sh", "basename", "cat", "chmod", "cp", "cut", "date", "dirname", "env", "expr",
         "false", "head", "id", "ln", "ls", "mkdir", "mktemp", "mv", "nproc", "pwd", "rm", "rmdir", "sleep", "sort",
         "stat", "tail", "tee", "test", "touch", "tr", "true", "uname", "wc")  # fmt: skip
# Whole files, so that a test in them that does not say what it needs fails; and single tests of other files.
AFFECTED = (
    "tests/browser",
    "tests/cluster/test_slurm.py",
    "tests/k8s",
    "tests/workflow/test_bad_input.py::test_a_full_disk_in_a_job",
    "tests/workflow/test_faults.py::test_a_full_disk_at_every_stage",
    "tests/workflow/test_faults.py::test_a_read_only_folder",
    "tests/workflow/test_faults.py::test_hashes_by_hand",
    "tests/workflow/test_deploy.py::test_deployed_files",
    "tests/unit/files/test_storage.py::test_full_disk",
)
HIDDEN = {"bash", "chromium", "rsync", "slurm", "small disk"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder for PATH that holds Python, git, make and a shell with its usual tools, and nothing else."""
    folder = tmp_path_factory.mktemp("bin")
    for name in THERE:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def outcomes(bare, folder, **variables):
    """How the affected tests end where PATH is `bare`: test → passed, skipped, failure or error, and the reason."""
    own = ("CI", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT")
    environment = {key: value for key, value in os.environ.items() if key not in own}
    environment |= {"PATH": str(bare)} | variables
    folder.mkdir()
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *AFFECTED]
    command += [f"--junit-xml={report}", f"--basetemp={folder / 'temporary'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        ends = {child.tag: child.get("message", "") for child in case if child.tag in ("skipped", "failure", "error")}
        (found[name],) = ends.items() or [("passed", "")]
    return found, done.stdout


def test_where_little_is_installed_nothing_fails_and_in_ci_it_is_an_error(bare, tmp_path):
    ends, said = outcomes(bare, tmp_path / "reader")
    kinds = Counter(end for end, _ in ends.values())
    assert set(kinds) <= {"passed", "skipped"}, said
    reasons = {name: reason for name, (end, reason) in ends.items() if end == "skipped"}
    named = {name for reason in reasons.values() for name in re.findall(r"needs ([\w -]+): .", reason)}
    assert named == HIDDEN, reasons
    passed = {name for name, (end, _) in ends.items() if end == "passed"}
    assert {name.rpartition(".")[2] for name in passed} == {
        "test_deployed_files",
        "test_driver_manifest",
        "test_image_file",
        "test_image_is_built_of_what_a_hash_names",
        "test_the_namespace_admits_the_driver_with_nothing_left_out",
    }

    # The same ones, each before anything was made for it.
    in_ci, said = outcomes(bare, tmp_path / "ci", CI="true")
    assert {name for name, (end, _) in in_ci.items() if end == "error"} == set(reasons), said
    assert {name for name, (end, _) in in_ci.items() if end != "error"} == passed, said
    for name, reason in reasons.items():
        assert f"{reason}; with CI=true nothing may be missing" in in_ci[name][1]


def test_the_list_of_what_is_missing(bare):
    """`python3 tests/needs.py`, which .ci/run asks for Debian packages and for what is still missing after."""
    command = [sys.executable, ROOT / "tests/needs.py"]
    environment = os.environ | {"PATH": str(bare)}
    packages = subprocess.run([*command, "--packages"], env=environment, capture_output=True, text=True, check=True)
    assert {"bash", "chromium", "mount", "munge", "rsync", "slurm-wlm"} <= set(packages.stdout.split())
    assert not {"git", "make"} & set(packages.stdout.split())
    listed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert listed.returncode == 1
    assert "needs rsync: rsync: not installed\n" in listed.stdout
