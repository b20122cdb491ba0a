"""What can be known of sizes, grids, names and seeds before a job runs: checks yield problems as those of `checks`.

Nothing heavy is imported: a dry run checks all of it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

from ..flow.curricula import curriculum, mass
from .settings import Experiment, Run, Schedule
from .shapes import SHAPES, shape_of
from .shards import shard_range
from .uses import trainings, uses

RESERVED = ("figures", "logs", "pages", "tables")  # folders beside those of the experiments
TAKEN = ("data", "solver", "teacher")  # methods of rows that are no run's
PREFIXES = ("couplings-", "teacher-")  # of files beside those of the runs
LONGEST = 100  # of a name, since file names hold it with more before and after
LEAST_MASS = 1e-9
LEAST_ALPHA = 1e-6  # below it float32's rounding, divided by α, is as large as the data
FINEST = 1e-6  # of a noise level, the least distance to the next one that float32 resolves
RENOISED = 1280  # noise levels that sampling of students from pairs takes its steps from (`sampling.ve_times`)


def check_experiments(names: list[str]) -> Iterator[str]:
    """That no experiment is named twice, and that no two differ in case alone."""
    if len(set(names)) < len(names):
        yield f"experiments: named twice in {names}"
    if pair := _alike(names):
        yield f"experiments: {pair[0]} and {pair[1]} differ in case alone; rename one"


def check_names(name: str, experiment: Experiment) -> Iterator[str]:
    """That file systems and the pipeline's own files leave room for folders and files of an experiment's names."""
    if problem := _unfit(name):
        yield f"experiments: the preset's name {problem}"
    if name.casefold() in RESERVED:
        yield "experiments: the preset's name is taken by a folder of results; rename its file"
    for method in experiment.methods:
        if method in TAKEN:
            yield f"methods.{method}: the name is taken; choose another"
        if problem := _unfit(method):
            yield f"methods.{method}: a name {problem}"
        if method.startswith(PREFIXES):
            taken = f"a name that begins with {' or '.join(PREFIXES)} is taken by other files"
            yield f"methods.{method}: {taken}; choose another"
    if pair := _alike(experiment.methods):
        yield f"methods.{pair[1]}: differs from {pair[0]} in case alone; rename one"


def _unfit(name: str) -> str | None:
    """What is wrong with a name, or nothing."""
    if len(name) > LONGEST:
        return f"has at most {LONGEST} characters, this one has {len(name)}"
    if not re.fullmatch(r"[^\W_][\w-]*", name):
        return "has letters, digits, - and _ only, and begins with a letter or digit"
    return None


def _alike(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that a file system without upper case takes for one."""
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            return seen[folded], name
        seen[folded] = name
    return None


def kept(schedule: Schedule) -> float:
    """α_T², the data's share of the variance at the last timestep."""
    total, power = 0.0, 0.5 if schedule.kind == "scaled_linear" else 1.0
    low, high = schedule.beta_start**power, schedule.beta_end**power
    for t in range(schedule.steps):
        total += math.log1p(-((low + t / max(schedule.steps - 1, 1) * (high - low)) ** (1 / power)))
    return math.exp(total)


def check_schedule(schedule: Schedule) -> Iterator[str]:
    """That a teacher's noise levels rise, and something of the data is left at the last one."""
    if schedule.beta_start >= schedule.beta_end:
        yield f"schedule.beta_start: must be below schedule.beta_end {schedule.beta_end}"
    alpha = kept(schedule) ** 0.5
    if alpha < LEAST_ALPHA:
        yield (
            f"schedule.beta_end: {schedule.beta_end:g} over {schedule.steps} steps leaves α_T {alpha:.1g} of the data; "
            f"allowed: at least {LEAST_ALPHA:g}, with fewer steps or a smaller beta_end"
        )


def check(experiment: Experiment, runs: list[Run]) -> Iterator[str]:
    """Sizes, grids and lists, against each other."""
    yield from _lists(experiment)
    yield from _runs(experiment, runs)
    yield from _evaluation(experiment)
    for section, training in trainings(experiment, runs).items():
        if training.device == "cpu" and training.precision == "fp16":
            yield f"{section}.training.precision: fp16 with device cpu; allowed there: no, bf16"
    needed = uses(experiment, runs)
    if needed.network:
        yield from _network(experiment)
    if needed.targets:
        yield from _shards(experiment, runs)
        yield from _null_class(experiment, runs)
    if needed.pairs:
        yield from _pairs(experiment)


def _lists(experiment: Experiment) -> Iterator[str]:
    """Numbers that would be measured, and written, twice."""
    analysis = experiment.analysis
    for path, values in {
        "claims": [claim.name for claim in experiment.claims],
        "consistency_training.budgets": [f"{budget:g}" for budget in experiment.consistency_training.budgets],
        "analysis.steps": analysis.steps,
        "analysis.order_steps": analysis.order_steps,
        "analysis.coupling_methods": analysis.coupling_methods,
        "evaluation.metrics": [metric.name for metric in experiment.evaluation.metrics],
        "figures": [figure.name for figure in experiment.figures],
    }.items():
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            yield f"{path}: {twice[0]} is given twice; allowed: each once"


def _runs(experiment: Experiment, runs: list[Run]) -> Iterator[str]:
    """Runs and conditions that would share a file; runs of which nothing would be sampled."""
    if pair := _alike([run.id for run in runs]):
        yield f"runs: {pair[0]} and {pair[1]} differ in case alone; rename a method"
    guidance: dict[str, float] = {}
    for run in runs:
        if not run.from_pairs and guidance.setdefault(run.condition, run.guidance) != run.guidance:
            yield (
                f"runs: guidance {guidance[run.condition]!r} and {run.guidance!r} have one name, {run.condition}; "
                "allowed: scales that differ in six digits"
            )
    numbers = experiment.evaluation.sampling_steps
    for run in runs:
        if not run.sampling_steps(numbers):
            most = f", and its N is {run.n_steps}" if run.n_steps else ""
            yield (
                f"methods.{run.method}: sampled in at least {run.least_steps} steps, of which "
                f"evaluation.sampling_steps {numbers} has none{most}"
            )


def _evaluation(experiment: Experiment) -> Iterator[str]:
    """Samples and data that statistics are made of."""
    evaluation, data = experiment.evaluation, experiment.data
    largest = max(evaluation.sampling_steps)
    if largest > experiment.schedule.steps:
        yield f"evaluation.sampling_steps: {largest} is more than schedule.steps"
    if 1 not in evaluation.sampling_steps or len(set(evaluation.sampling_steps)) < len(evaluation.sampling_steps):
        yield f"evaluation.sampling_steps: {evaluation.sampling_steps} must hold 1, and no number twice"
    if evaluation.neighbours >= evaluation.count:
        yield f"evaluation.neighbours: must be below evaluation.count {evaluation.count}"
    if data.kind == "digits":
        count, needed = SHAPES["digits"][1], max(4, evaluation.neighbours + 1)
        held_out = round(data.test_share * count)
        if not 1 <= held_out <= count - needed:
            yield (
                f"data.test_share: {data.test_share:g} holds out {held_out} of {count} digits; allowed: at least 1, "
                f"and at least {needed} left to learn from and to compare with"
            )


def _network(experiment: Experiment) -> Iterator[str]:
    """A UNet halves the side at each resolution but the first."""
    network, data = experiment.network, experiment.data
    if network.kind != "unet" or data.kind in ("mixture", "captions"):
        return
    side, levels = shape_of(experiment)[0][-1], len(network.channels)
    if side % 2 ** (levels - 1):
        halved = (side & -side).bit_length()
        what = "data.side" if data.kind == "images" else f"the side of {data.kind},"
        yield (
            f"network.channels: {levels} widths halve the side {levels - 1} times, which {what} {side} does not allow; "
            f"allowed: at most {halved} widths, or a side that {2 ** (levels - 1)} divides"
        )
    sides = [side >> level for level in range(levels)]
    for attended in network.attention:
        if attended not in sides:
            yield f"network.attention: {attended} is no side of this network; allowed: {', '.join(map(str, sides))}"


def _shards(experiment: Experiment, runs: list[Run]) -> Iterator[str]:
    """A student's batch comes from one shard."""
    targets, batch = experiment.targets, experiment.student.training.batch_size
    if targets.shards > targets.count:
        yield f"targets.shards: more shards than targets.count {targets.count}"
    smallest = len(shard_range(targets.count, targets.shards, 0))  # the first one is never larger than others
    for run in runs:
        pairs = run.n_steps if run.targets == "trajectory" else 1
        if not run.from_pairs and smallest * pairs < batch:
            most = targets.count // -(-batch // pairs)
            yield (
                f"targets.shards: {targets.shards} of targets.count {targets.count} hold {smallest * pairs} pairs in "
                f"the smallest, fewer than student.training.batch_size {batch} (run {run.id}); allowed: "
                f"{f'at most {most} shards, ' * (most > 0)}a larger targets.count or a smaller batch"
            )


def _null_class(experiment: Experiment, runs: list[Run]) -> Iterator[str]:
    """Guidance needs the null class, which a teacher trained here learns from dropped labels."""
    teacher = experiment.teacher
    guided = [run.guidance for run in runs if not run.from_pairs and run.guidance != 1]
    seen = teacher.label_dropout * teacher.training.steps * teacher.training.batch_size
    if teacher.source == "train" and guided and seen < 1:
        yield (
            f"teacher.label_dropout: {teacher.label_dropout:g} leaves the null class untrained, which guidance "
            f"{guided[0]:g} needs; allowed: more than 0, such as 0.1, or guidance 1 alone"
        )


def _pairs(experiment: Experiment) -> Iterator[str]:
    """Noise levels, their number and their distribution."""
    where, settings = "consistency_training", experiment.consistency_training
    edm, steps, total = settings.edm, settings.curriculum, settings.training.steps
    reached = curriculum(total - 1, total, steps.s0, steps.s1) - 1
    if reached < steps.s1:
        yield (
            f"{where}.curriculum.s1: {steps.s1} is not reached from s0 {steps.s0} in training.steps {total}, which end "
            f"at {reached}; allowed: at most {reached}, or s0 times a power of 2, and steps to double as often"
        )
    if (share := mass(edm.sigma_min, edm.sigma_max, steps.p_mean, steps.p_std)) < LEAST_MASS:
        low, high = math.log(edm.sigma_min), math.log(edm.sigma_max)
        yield (
            f"{where}.curriculum.p_mean: {steps.p_mean:g} with p_std {steps.p_std:g} leaves {share:.1g} of the "
            f"distribution of ln σ to the grid, {low:.3g} to {high:.3g}; allowed: a mean in it or near"
        )
    finest = max([steps.s1, *experiment.analysis.steps]) if experiment.analysis.coupling_methods else steps.s1
    low, high = edm.sigma_min ** (1 / edm.rho), edm.sigma_max ** (1 / edm.rho)
    below = (high - (high - low) / finest) ** edm.rho
    if edm.sigma_max - below < FINEST * edm.sigma_max:
        yield (
            f"{where}.edm.sigma_max: {finest} steps from sigma_min {edm.sigma_min:g} to {edm.sigma_max:g} are closer "
            "than float32 resolves; allowed: levels further apart, or fewer steps"
        )
    largest = max(experiment.evaluation.sampling_steps)
    if largest > RENOISED:
        yield f"evaluation.sampling_steps: {largest}; allowed with methods of pairs: at most {RENOISED}"
