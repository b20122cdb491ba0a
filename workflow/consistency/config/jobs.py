"""What one job of a student is told: its settings as one validated object, from an experiment and a run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .components import Curriculum
from .settings import (
    ConsistencyTraining,
    Coupling,
    Experiment,
    FlowName,
    LogitNormal,
    Loss,
    Parameterisation,
    Run,
    Student,
    Training,
)
from .sources import Strict

Call = dict[str, Any]  # of `registry.Function.call`: name, file, params and code of a function


class Row(Strict):
    """The columns of metrics.csv that name a run."""

    run: str
    method: str
    solver: str | None = None
    n_steps: int | None = None
    guidance: float | None = None
    seed: int


class MapJob(Strict):
    """What a student is: its flow, and how its network's output becomes a point."""

    flow: FlowName
    flow_options: dict[str, Any]
    parameterisation: Parameterisation
    timestep_offset: int = -1


class StudentJob(MapJob):
    """All that a training's result depends on, besides files. What a run does not use has its default."""

    run: Row
    objective: Call
    draws: Literal["targets", "pairs"]
    loss: Loss
    training: Training
    parameters: Literal["full", "lora"] = "full"
    lora_rank: int | None = None
    coupling: Coupling | None = None
    coupled_by: Call | None = None
    velocity: Literal["pair", "teacher"] = "pair"
    teacher_schedule: dict[str, Any] | None = None
    times: Curriculum | LogitNormal | None = None
    network: dict[str, Any] | None = None
    budgets: list[float] = Field([])


class SamplingJob(MapJob):
    """All that a student's samples depend on, besides files."""

    sampler: Call
    sampling_steps: list[int]
    n_steps: int | None = None
    budgets: list[float] = Field([])
    count: int
    seed: int
    batch_size: int
    precision: Literal["no", "bf16", "fp16"]


def row_of(run: Run) -> Row:
    """The columns that name a run."""
    return Row(run=run.id, **{key: getattr(run, key) for key in Row.model_fields if key != "run"})


def map_job(experiment: Experiment, run: Run) -> MapJob:
    """A run's flow and parameterisation."""
    options = {"vp": experiment.schedule, "ve": experiment.consistency_training.edm}
    flow_options = options[run.flow].model_dump() if run.flow in options else {}
    if run.flow == "trigflow":
        flow_options = {"sigma_data": experiment.consistency_training.edm.sigma_data}
    # The network of a student of targets is called as its teacher's; others are asked with a time of their own.
    offset = experiment.teacher.timestep_offset if not run.from_pairs or _asks_a_network(experiment, run) else -1
    return MapJob(
        flow=run.flow, flow_options=flow_options, parameterisation=run.parameterisation, timestep_offset=offset
    )


def section(experiment: Experiment, run: Run) -> Student | ConsistencyTraining:
    """The part of the configuration that a run is trained by."""
    return experiment.consistency_training if run.from_pairs else experiment.student


def training_job(experiment: Experiment, run: Run) -> StudentJob:
    """How a run's student is trained."""
    chosen = section(experiment, run)
    call = experiment.registry.get("objective", run.objective).call(run.params)
    settings: dict[str, Any] = {"objective": call, "draws": run.draws, "loss": run.loss}
    if run.from_pairs:
        network = experiment.network.model_dump()
        settings |= {
            "coupling": run.coupling,
            "coupled_by": experiment.registry.get("coupling", run.coupling.kind).call({}),
            "velocity": run.velocity,
            "teacher_schedule": experiment.schedule.model_dump() if _asks_a_network(experiment, run) else None,
            "times": run.times or chosen.curriculum,
            "network": network if run.dropout is None else network | {"dropout": run.dropout},
            "budgets": chosen.budgets,
        }
    else:
        rank = experiment.student.lora_rank if run.parameters == "lora" else None
        settings |= {"parameters": run.parameters, "lora_rank": rank}
    return StudentJob(run=row_of(run), training=chosen.training, **map_job(experiment, run).model_dump(), **settings)


def sampling_job(experiment: Experiment, run: Run) -> SamplingJob:
    """How a run's student is sampled."""
    evaluation = experiment.evaluation
    return SamplingJob(
        **map_job(experiment, run).model_dump(),
        sampler=experiment.registry.get("sampler", run.sampler).call(run.sampler_params),
        sampling_steps=run.sampling_steps(evaluation.sampling_steps),
        n_steps=run.n_steps,
        budgets=experiment.consistency_training.budgets if run.from_pairs and run.least_steps == 1 else [],
        count=evaluation.count,
        seed=experiment.redrawn(evaluation.seed, run.seed),
        batch_size=evaluation.batch_size,
        precision=evaluation.precision,
    )


def _asks_a_network(experiment: Experiment, run: Run) -> bool:
    """Whether a run from pairs follows the velocity of a teacher that is a network."""
    return run.from_pairs and run.velocity == "teacher" and experiment.teacher.source != "analytic"
