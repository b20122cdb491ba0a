"""Which parts of an experiment its jobs read, and whether an override changes one of them.

An override that reaches nothing is an error. One that waits for another choice is a warning: settings of what is
trained here, while the teacher comes from elsewhere, and of adapters, while no run has any. Who tries both would have
to take them out and put them back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .settings import Experiment, Run, TeacherConfig, Training


@dataclass(frozen=True)
class Uses:
    """What an experiment's jobs need.

    Attributes:
        targets, pairs: a run learns from precomputed targets, from pairs.
        asked: a teacher that is a network is asked for its velocity, by a run from pairs.
        trained: settings of `teacher` train a network here: the teacher, or what students of an analytic one start as.
        imported: the teacher comes from a folder or the hub.
        network: a network is built here from `network`.
        classifier: the classifier of `classifier` is trained.
        analysed: methods of `analysis.coupling_methods` that have runs.
    """

    targets: bool
    pairs: bool
    asked: bool
    trained: bool
    imported: bool
    network: bool
    classifier: bool
    analysed: tuple[str, ...]


def uses(experiment: Experiment, runs: list[Run]) -> Uses:
    """What the jobs of an experiment with these runs need."""
    source, pairs = experiment.teacher.source, {run.method for run in runs if run.from_pairs}
    targets = any(not run.from_pairs for run in runs)
    asked = source != "analytic" and any(run.velocity == "teacher" for run in runs)
    trained = (source == "train" and (targets or asked)) or (source == "analytic" and targets)
    images = experiment.data.kind != "mixture"  # of others the coordinates are the features
    return Uses(
        targets=targets,
        pairs=bool(pairs),
        asked=asked,
        trained=trained,
        imported=source in ("path", "hub") and (targets or asked),
        network=trained or bool(pairs),
        classifier=images and any(extractor.kind == "classifier" for extractor in experiment.extractors),
        analysed=tuple(method for method in experiment.analysis.coupling_methods if method in pairs),
    )


def trainings(experiment: Experiment, runs: list[Run]) -> dict[str, Training]:
    """Section → its `training`, of those that train something."""
    needed = uses(experiment, runs)
    sections = {
        "teacher": needed.trained and experiment.teacher.training,
        "classifier": needed.classifier and experiment.classifier.training,
        "student": needed.targets and experiment.student.training,
        "consistency_training": needed.pairs and experiment.consistency_training.training,
    }
    return {section: training for section, training in sections.items() if training}


def unused(experiment: Experiment, runs: list[Run]) -> dict[str, str]:
    """Path of a section or key that no job of the experiment reads → why."""
    needed, teacher, analysis = uses(experiment, runs), experiment.teacher, experiment.analysis
    exact, captions = teacher.source == "analytic", experiment.data.kind == "captions"
    no_targets, no_pairs = "no run learns from targets", "no run learns from pairs"
    methods = {run.method for run in runs}
    of_targets = [experiment.methods[run.method].loss for run in runs if not run.from_pairs]
    of_pairs = [experiment.methods[run.method].loss for run in runs if run.from_pairs]
    from_pairs = {run.method for run in runs if run.from_pairs}
    rows = [row for row in experiment.runs if not set(row.method or ()) & from_pairs]
    source = f"teacher.source is {teacher.source}"
    parts = {
        "targets": not needed.targets and no_targets,
        "targets.mode": needed.targets and all(row.targets for row in rows) and "every row of runs has targets",
        "student": not needed.targets and no_targets,
        "student.parameters": needed.targets and all(r.parameters for r in rows) and "every row of runs has parameters",
        "student.loss": needed.targets and None not in of_targets and "every method has a loss of its own",
        "consistency_training": not needed.pairs and no_pairs,
        "consistency_training.loss": needed.pairs and None not in of_pairs and "every method has a loss of its own",
        "evaluation.start_times": not needed.targets and no_targets,
        "schedule": not (needed.targets or needed.asked or analysis.order_steps) and no_targets,
        "classifier": not needed.classifier and "extractors has no classifier",
        "extractors": experiment.data.kind == "mixture" and "the features of a mixture are its coordinates",
        "data.download": captions and bool(experiment.data.source) and "data.source takes its place",
        "teacher.path": teacher.source != "path" and source,
        "teacher.hub": teacher.source != "hub" and source,
        "teacher.subfolder": not needed.imported and source,
        "teacher.precision": exact and "the closed form is solved in float64",
    }
    parts |= {f"methods.{m}": m not in methods and "no row of runs names it" for m in experiment.methods}
    if not (needed.targets or needed.asked):
        parts |= {f"teacher.{key}": "no run has a teacher" for key in TeacherConfig.model_fields if key != "source"}
    for key in ("steps", "count", "gradient_budget", "batch_size", "velocity"):
        parts[f"analysis.{key}"] = not needed.analysed and "analysis.coupling_methods names no method with runs"
    return {path: why for path, why in parts.items() if why}


def waiting(experiment: Experiment, runs: list[Run]) -> dict[str, str]:
    """Path of a section or key that no job reads unless something else is chosen → why."""
    needed = uses(experiment, runs)
    here = not needed.trained and f"nothing is trained with it where teacher.source is {experiment.teacher.source}"
    parts = {
        "network": not needed.network and "no network is built here, students start as the teacher",
        "teacher.training": here,
        "teacher.seed": here,
        "teacher.label_dropout": here,
        "student.lora_rank": all(run.parameters != "lora" for run in runs) and "no run has parameters lora",
    }
    return {path: why for path, why in parts.items() if why}


def check_overrides(name: str, experiment: Experiment, runs: list[Run], overrides: dict[str, Any]) -> None:
    """Check that every key of an experiment's overrides is one that a job reads.

    Raises:
        ConfigError: one is not; names it, and why.
    """
    for path, why in _within(overrides, unused(experiment, runs)):
        raise ConfigError(f"config.yaml: overrides.{name}.{path}: reaches nothing: {why}; remove it, or change that")


def idle(experiment: Experiment, runs: list[Run], overrides: dict[str, Any]) -> list[str]:
    """A line for each key of an experiment's overrides that waits for another choice."""
    return [f"{path}: not used, because {why}" for path, why in _within(overrides, waiting(experiment, runs))]


def _within(value: Any, parts: dict[str, str], path: str = "", why: str | None = None) -> Iterator[tuple[str, str]]:
    """The paths of the values in overrides that lie in one of the parts, and why the outermost of these is one."""
    why = why or parts.get(path)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _within(inner, parts, f"{path}.{key}" if path else str(key), why)
    elif why:
        yield path, why
