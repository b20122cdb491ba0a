"""What a configuration may say but probably does not mean: warnings before any job."""

from __future__ import annotations

import math

from .settings import Experiment, Run
from .shapes import shape_of
from .uses import trainings, uses

# Features of each extractor; of DINOv2 by the end of the repository's name.
FEATURES = {"efficientnet-lite0": 1280, "inception-v3": 2048}
DINOV2 = {"small": 384, "base": 768, "large": 1024, "giant": 1536}


def lines(experiment: Experiment, runs: list[Run]) -> list[str]:
    """One line each: the key, what was given, what follows."""
    return [*_trainings(experiment, runs), *_width(experiment, runs), *_count(experiment), *_missing(experiment, runs)]


def _trainings(experiment: Experiment, runs: list[Run]) -> list[str]:
    lines = []
    for section, training in trainings(experiment, runs).items():
        decay = round(training.decay_share * training.steps)
        if training.warmup_steps + max(decay, 1) > training.steps + 1:  # `optimizers.rate_at`
            lines.append(
                f"{section}.training.warmup_steps: {training.warmup_steps} steps of warm-up and {decay} of decay in "
                f"{training.steps} steps: the learning rate never reaches {training.learning_rate:g}"
            )
    return lines


def _width(experiment: Experiment, runs: list[Run]) -> list[str]:
    network = experiment.network
    if not uses(experiment, runs).network or network.kind != "mlp" or experiment.data.kind == "captions":
        return []
    values = math.prod(shape_of(experiment)[0])
    if network.width >= values:
        return []
    return [f"network.width: {network.width} is less than the {values} values of a sample: such an MLP learns little"]


def _count(experiment: Experiment) -> list[str]:
    """Of the first extractor with features, which tables, figures and claims lead with."""
    if experiment.data.kind == "mixture":
        name, size = "coordinates", experiment.data.dimension
    else:
        first = next((e for e in experiment.extractors if e.kind != "clip"), None)
        sizes = FEATURES | {"classifier": experiment.classifier.feature_size}
        if first is None:
            return []
        name, size = first.kind, sizes.get(first.kind, 0)
        if first.kind == "dinov2":
            size = DINOV2.get(first.weights.repo.rpartition("-")[2], 0)
    if experiment.evaluation.count > size:
        return []
    return [
        f"evaluation.count: {experiment.evaluation.count} samples for {size} features ({name}): their covariance is "
        "singular, and Fréchet distances are mostly its error; more samples than features are needed"
    ]


def _missing(experiment: Experiment, runs: list[Run]) -> list[str]:
    """What is left of a preset whose `runs` were narrowed."""
    methods, lines = {run.method for run in runs}, []
    undecided = [
        claim.name
        for claim in experiment.claims
        if not any({quantity.ours, quantity.other} <= methods for quantity in claim.quantities)
    ]
    if undecided:
        lines.append(f"claims: {', '.join(undecided)}: not decided, because methods that they compare have no runs")
    absent = [method for method in experiment.analysis.coupling_methods if method not in methods]
    if absent:
        lines.append(f"analysis.coupling_methods: {', '.join(absent)}: not measured, because there are no runs of it")
    half, budgets = experiment.gates.student.settled, experiment.consistency_training.budgets
    if half not in (None, *budgets) and any(run.from_pairs for run in runs):
        lines.append(f"gates.student.settled: {half:g} is not checked, because it is not in {budgets}, the budgets")
    return lines
