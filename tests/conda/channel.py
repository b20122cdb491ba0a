"""A conda channel in a folder, with the two packages that envs/*.yaml ask conda for: python and pip.

Where there is no network to conda-forge these come from the machine: `python` is its interpreter with a pyvenv.cfg, as
`python -m venv` makes it, so the channel is good on this machine alone; `pip` is ensurepip's wheel.
"""

from __future__ import annotations

import ensurepip
import hashlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path


def build(channel: Path) -> Path:
    """Write the channel; gives its folder."""
    version, short = "{}.{}.{}".format(*sys.version_info), "{}.{}".format(*sys.version_info)
    home = Path(sys.base_prefix) / "bin"
    interpreter = (home / f"python{short}").read_bytes()
    settings = f"home = {home}\ninclude-system-site-packages = false\nversion = {version}\n"
    python = {f"bin/{name}": interpreter for name in ("python", "python3", f"python{short}")}
    python |= {"pyvenv.cfg": settings.encode(), f"lib/python{short}/site-packages/README": b"From a local channel.\n"}
    wheel = next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        pip = {f"site-packages/{name}": archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    entry = {"noarch": {"type": "python", "entry_points": ["pip = pip._internal.cli.main:main"]}}
    _publish(channel / "linux-64", "python", version, python)
    _publish(channel / "noarch", "pip", wheel.name.split("-")[1], pip, ["python"], entry)
    return channel


def _publish(folder: Path, name: str, version: str, files: dict[str, bytes], depends=(), link=None) -> None:
    """Write a package with these files (path in the environment → content) and the folder's index."""
    index = {"name": name, "version": version, "build": "0", "build_number": 0, "depends": list(depends)}
    index |= {"subdir": folder.name} | ({"noarch": "python"} if folder.name == "noarch" else {})
    paths = [
        {
            "_path": path,
            "path_type": "hardlink",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_in_bytes": len(content),
        }
        for path, content in files.items()
    ]
    about = {"info/index.json": index, "info/paths.json": {"paths": paths, "paths_version": 1}, "info/about.json": {}}
    if link:
        about["info/link.json"] = link | {"package_metadata_version": 1}
    content = {path: json.dumps(value).encode() for path, value in about.items()}
    content["info/files"] = "".join(f"{path}\n" for path in files).encode()
    folder.mkdir(parents=True, exist_ok=True)
    package = folder / f"{name}-{version}-0.tar.bz2"
    with tarfile.open(package, "w:bz2", compresslevel=1) as archive:
        for path, data in (content | files).items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o755 if path.startswith("bin/") else 0o644
            archive.addfile(member, io.BytesIO(data))
    record = index | {"size": package.stat().st_size, "sha256": hashlib.sha256(package.read_bytes()).hexdigest()}
    repodata = {"info": {"subdir": folder.name}, "packages": {package.name: record}, "packages.conda": {}}
    (folder / "repodata.json").write_text(json.dumps(repodata | {"repodata_version": 1}))
