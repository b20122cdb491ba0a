"""A stand-in for `conda`: the calls that Snakemake makes of it, answered through py-rattler from channels in folders.

It lets `snakemake --use-conda` run for real where there is no conda client. Installed as `bin/conda` beside
`bin/activate`. What it is not made for it refuses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import rattler
import yaml

ACTIVATE = 'export CONDA_PREFIX="$1" CONDA_DEFAULT_ENV="$1" CONDA_SHLVL=1 PATH="$1/bin:$PATH"\n'


def install(base: Path, channels: Path) -> Path:
    """Put the client at `base`/bin, with the folder that holds its channels; gives the folder for PATH."""
    (base / "bin").mkdir(parents=True)
    command = base / "bin" / "conda"
    settings = f"STANDIN_BASE={shlex.quote(str(base))} STANDIN_CHANNELS={shlex.quote(str(channels))}"
    run = f"{shlex.quote(sys.executable)} {shlex.quote(__file__)}"
    command.write_text(f'#!/bin/sh\n{settings} exec {run} "$@"\n')
    command.chmod(0o755)
    (base / "bin" / "activate").write_text(ACTIVATE)
    return base / "bin"


def create(file: Path, prefix: Path) -> None:
    """Make the environment of a file: conda's packages solved and linked, then pip's installed by its own pip."""
    wanted = yaml.safe_load(file.read_text(encoding="utf-8"))
    if unknown := set(wanted) - {"name", "channels", "dependencies"}:
        sys.exit(f"{file}: keys that this client does not know: {sorted(unknown)}")
    channels = [_channel(name) for name in wanted["channels"] if name != "nodefaults"]
    specs = [spec for spec in wanted["dependencies"] if isinstance(spec, str)]
    asyncio.run(_link(channels, specs, prefix))
    for section in (spec["pip"] for spec in wanted["dependencies"] if isinstance(spec, dict)):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
            requirements.write("\n".join(section))
            requirements.flush()
            pip = [prefix / "bin" / "python", "-m", "pip", "install", "-U", "-r", requirements.name]
            subprocess.run(pip, check=True)


def _channel(name: str) -> rattler.Channel:
    folder = Path(os.environ["STANDIN_CHANNELS"], name)
    if not folder.is_dir():
        sys.exit(f"no channel {name} in {folder.parent}")
    return rattler.Channel(folder.as_uri())


async def _link(channels: list[rattler.Channel], specs: list[str], prefix: Path) -> None:
    matches = [rattler.MatchSpec(spec) for spec in specs]
    found = await rattler.solve(channels, matches, platforms=["linux-64", "noarch"])
    with tempfile.TemporaryDirectory() as cache:
        await rattler.install(found, prefix, cache_dir=cache, show_progress=False)


def main(arguments: list[str]) -> None:
    """Answer one call."""
    if arguments == ["--version"]:
        print("conda 24.7.1")  # the oldest that Snakemake takes
    elif arguments == ["info", "--json"]:
        print(json.dumps({"conda_prefix": os.environ["STANDIN_BASE"], "platform": "linux-64"}))
    elif arguments == ["config", "--get", "channel_priority", "--json"]:
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    elif arguments[:2] == ["env", "create"]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--quiet", action="store_true")
        parser.add_argument("--no-default-packages", action="store_true")
        parser.add_argument("--file", type=Path, required=True)
        parser.add_argument("--prefix", type=Path, required=True)
        asked = parser.parse_args(arguments[2:])
        create(asked.file, asked.prefix)
    elif arguments[:1] == ["clean"]:
        pass  # nothing is kept
    else:
        sys.exit(f"this stand-in for conda does not know: {shlex.join(arguments)}")


if __name__ == "__main__":
    main(sys.argv[1:])
