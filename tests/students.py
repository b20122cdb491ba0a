"""Students and their jobs, as tests make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from consistency.config.jobs import SamplingJob, StudentJob
from consistency.config.registry import BUILT_INS
from consistency.flow.schedules import VPSchedule
from consistency.students import maps
from consistency.training import recipes

MLP = {"kind": "mlp", "width": 32, "depth": 1}
VP = {"flow": "vp", "flow_options": {"steps": 1000}, "parameterisation": "boundary"}
VE = {"flow": "ve", "flow_options": {}, "parameterisation": "edm"}
LINEAR = {"flow": "linear", "flow_options": {}, "parameterisation": "average_velocity"}


def row(run: str = "x", seed: int = 0) -> dict[str, Any]:
    """The columns that name a run."""
    return {"run": run, "method": run, "seed": seed}


def called(kind: str, name: str) -> dict[str, Any]:
    """A built-in function as a job names it, with its defaults."""
    return BUILT_INS.get(kind, name).call({})


def job_of_targets(objective: str = "direct", **changes: Any) -> StudentJob:
    """Direct CM with a squared error, full fine-tuning."""
    settings = {"run": row(), "draws": "targets", "loss": {"kind": "mse"}, "training": {}}
    return StudentJob(**VP | settings | {"objective": called("objective", objective)} | changes)


def job_of_pairs(**changes: Any) -> StudentJob:
    """Consistency training of independent pairs, a small MLP."""
    coupling = {"kind": "independent"} | changes.pop("coupling", {})
    settings = {
        "run": row(),
        "objective": called("objective", "consistency_training"),
        "draws": "pairs",
        "loss": {"kind": "pseudo_huber_norm"},
        "training": {},
        "coupling": coupling,
        "coupled_by": called("coupling", coupling["kind"]),
        "times": {"s0": 10, "s1": 1280, "p_mean": -1.1, "p_std": 2.0},
        "network": MLP,
    }
    return StudentJob(**VE | settings | changes)


def sampling(**changes: Any) -> SamplingJob:
    """How a student of targets, N = 10, is sampled: 12 samples in batches of 5, in one step."""
    settings = {"sampler": called("sampler", "renoise"), "sampling_steps": [1], "n_steps": 10}
    return SamplingJob(**VP | settings | {"count": 12, "seed": 0, "batch_size": 5, "precision": "no"} | changes)


def fit(job: StudentJob, folder: Path, **files: Path | str) -> Path:
    """Train `folder/RUN`; its statistics lie beside it in `RUN.jsonl`, its checkpoints in `side/RUN`."""
    name = job.run.run
    outputs = {"folder": folder / name, "stats": folder / f"{name}.jsonl", "side_folder": folder / "side" / name}
    recipes.fit_student(job, {key: str(path) for key, path in files.items()}, **outputs)
    return folder / name


def begin(teacher_folder: Path, *arguments: Any, **options: Any) -> maps.FlowMap:
    """A student of the VP schedule that starts as the teacher; the arguments are those of `maps.create`."""
    return maps.FlowMap(maps.create(teacher_folder, *arguments, **options), VPSchedule())
