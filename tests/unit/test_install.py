"""`make install` for real, with the Makefile's own commands and tiny packages in a folder instead of an index."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT

PIP, TORCH = "requirements-pip.lock", "requirements-torch.lock"


def wheel(folder, name, *needs):
    """Write a wheel of version 1.0 that needs these packages; gives its sha256."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    metadata = [f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {need}" for need in needs)]
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": "\n".join(["Metadata-Version: 2.1", *metadata, ""]),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def checkout(tmp_path):
    """The Makefile beside locks of three packages: `engine` (as torch, without a hash), `wheels` and `car`, which needs both."""
    folder = tmp_path / "checkout"
    (tmp_path / "index").mkdir()
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    hashes = {
        "wheels": wheel(tmp_path / "index", "wheels"),
        "car": wheel(tmp_path / "index", "car", "wheels", "engine"),
    }
    wheel(tmp_path / "index", "engine", "wheels")
    lines = [f"{name}==1.0 \\\n    --hash=sha256:{value}\n" for name, value in hashes.items()]
    (folder / "requirements.lock").write_text("".join(lines))
    (folder / TORCH).write_text("engine==1.0\n")
    shutil.copy(ROOT / PIP, folder)  # this index has no pip: the one of Python installs
    return folder


def make(checkout, *arguments):
    """`make` there: exit status and what it said. pip knows the folder of packages and nothing else."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "MAKE", "VENV"))}
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout.parent / "index")}
    command = ["make", *arguments, f"PYTHON={sys.executable}", "VENV=venv"]
    done = subprocess.run(command, cwd=checkout, env=environment | settings, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def installed(checkout):
    """Names of the packages in the environment, of those that the index has."""
    return {path.stem for path in checkout.glob("venv/lib/python*/site-packages/*.py")} & {"wheels", "car", "engine"}


@pytest.mark.needs("make")
def test_files_that_fit_no_hash_are_not_installed(checkout):
    lock = checkout / "requirements.lock"
    right = lock.read_text()
    first = re.search("sha256:(.)", right)[1]
    wrong = right.replace(f"sha256:{first}", f"sha256:{'0' if first != '0' else '1'}", 1)
    lock.write_text(wrong)
    status, said = make(checkout, "install")
    assert status != 0, said
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in said
    expected, seen = (re.search("sha256:(.{64})", text)[1] for text in (wrong, right))
    assert f"Expected sha256 {expected}" in said
    assert re.search(rf"Got\s+{seen}", said), said
    assert installed(checkout) == set()

    lock.write_text(re.sub(r"(car==1.0) .*\n.*", r"\1", right))
    status, said = make(checkout, "install")
    assert status != 0, said
    assert "Hashes are required in --require-hashes mode" in said
    assert installed(checkout) == set()
    assert not list(checkout.glob("venv/installed-from*"))


@pytest.mark.needs("make")
def test_an_installation_that_lacks_a_package_ends_with_its_name(checkout):
    lock = checkout / "requirements.lock"
    lock.write_text(lock.read_text()[lock.read_text().index("car==") :])  # not `wheels`, which both others need
    (checkout / TORCH).write_text("")
    status, said = make(checkout, "install")
    assert status != 0, said
    assert "car 1.0 requires wheels, which is not installed." in said
    assert not list(checkout.glob("venv/installed-from*"))


@pytest.mark.needs("make")
def test_what_fits_is_installed_and_a_change_of_any_lock_is_noticed(checkout):
    status, said = make(checkout, "install")
    assert status == 0, said
    assert installed(checkout) == {"wheels", "car", "engine"}
    assert make(checkout, "--question", "install") == (0, "")
    (stamp,) = checkout.glob("venv/installed-from*")
    for name in ("requirements.lock", PIP, TORCH):
        before = (checkout / name).stat().st_mtime
        later = stamp.stat().st_mtime + 1
        os.utime(checkout / name, (later, later))
        assert make(checkout, "--question", "install")[0] == 1, f"{name} is newer than the environment"
        os.utime(checkout / name, (before, before))
    assert make(checkout, "--question", "install") == (0, "")


@pytest.mark.needs("make")
def test_torchs_lock_may_carry_hashes_too(checkout):
    """docs/environments.md says so; packages that are installed already need none there."""
    right = hashlib.sha256((checkout.parent / "index" / "engine-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    (checkout / TORCH).write_text(f"engine==1.0 --hash=sha256:{'0' * 64}\n")
    status, said = make(checkout, "install")
    assert status != 0, said
    assert re.search(rf"Got\s+{right}", said), said
    assert installed(checkout) == {"wheels", "car"}
    (checkout / TORCH).write_text(f"engine==1.0 --hash=sha256:{right}\n")
    status, said = make(checkout, "install")
    assert status == 0, said
    assert installed(checkout) == {"wheels", "car", "engine"}
