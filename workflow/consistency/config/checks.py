"""What no single key can say of a preset: checks across keys, of mixtures and of methods that learn from pairs.

A check yields problems: one line with the key's path, what was given, what is allowed. `resolve` raises the first.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import limits
from .components import LARGEST_ASSIGNMENT
from .names import nearest
from .settings import OF_FLOW, Experiment, Frozen, Run
from .shapes import SHAPES


def check_lender(experiment: Experiment, other: str, lender: Experiment) -> Iterator[str]:
    """An experiment may use the teacher of another one: both say the same of it."""
    if experiment.teacher.source != "train" or lender.teacher.source != "train" or lender.teacher.of:
        yield f"teacher.of: {other!r}; allowed: with source train here and there, and no of there"
    for key in ("data", "schedule", "network", "teacher", "replicates"):
        ours, theirs = (getattr(e, key) for e in (experiment, lender))
        if key == "teacher":
            ours, theirs = (value.model_dump(include={"label_dropout", "seed", "training"}) for value in (ours, theirs))
        if ours != theirs:
            yield f"teacher.of: {other!r} has another {key}; allowed: presets that share it"


def check_sources(experiment: Experiment, runs: list[Run]) -> Iterator[str]:
    """What a teacher's source, the data's kind and the extractors need of each other."""
    teacher, data = experiment.teacher, experiment.data
    for source, named in (("path", teacher.path), ("hub", teacher.hub)):
        if teacher.source == source and not named:
            yield f"teacher.{source}: required when teacher.source is {source}"
    if teacher.path and teacher.source != "path":
        yield f"teacher.path: {teacher.path!r} with teacher.source {teacher.source}; allowed: with source path"
    if teacher.of and teacher.source != "train":
        yield f"teacher.of: {teacher.of!r}; allowed: with teacher.source train"
    captions = data.kind == "captions"
    if teacher.compile and not captions:
        yield f"teacher.compile: true with data.kind {data.kind!r}; allowed: false (SDXL alone gains)"
    if captions:
        if teacher.source not in ("hub", "path"):
            yield f"teacher.source: {teacher.source!r} with data.kind captions; allowed: hub, path"
        if data.source is None and data.download is None:
            yield "data.source: required, unless data.download is given"
        if pairs := [run.method for run in runs if run.from_pairs]:
            yield f"runs: {pairs[0]} learns from pairs; with data.kind captions only from targets"
    labelled = (data.kind in SHAPES and getattr(data, "conditional", True)) or getattr(data, "labels", None)
    if not labelled and not captions:
        for run in runs:
            if run.guidance not in (None, 1):
                yield f"runs: guidance {run.guidance:g} with data of one class; allowed: 1 (there is no guidance)"
    kinds = [extractor.kind for extractor in experiment.extractors]
    if len(set(kinds)) < len(kinds):
        yield f"extractors: {kinds} names one twice"
    taken = ("efficientnet-lite0", "inception-v3", "dinov2", "clip", "aesthetic", "coordinates", "pixels", "latents")
    if experiment.classifier.name in taken:
        yield f"classifier.name: {experiment.classifier.name!r} is another extractor's name"
    if kinds == ["clip"]:
        yield "extractors: clip gives scores only; add one that gives features"
    if "clip" in kinds and not captions:
        yield "extractors: clip compares with captions; allowed with data.kind captions"
    if "classifier" in kinds and not labelled and data.kind != "mixture":
        yield "extractors: classifier needs data with classes; allowed: the pretrained ones"
    for section in ("teacher", "student", "classifier", "consistency_training"):
        training, where = getattr(experiment, section).training, f"{section}.training"
        if training.batch_size % training.accumulate:
            yield f"{where}.accumulate: {training.accumulate} does not divide batch_size {training.batch_size}"
        if experiment.gpu and training.batch_size % experiment.gpu:
            yield (
                f"gpu: {experiment.gpu} processes cannot share {where}.batch_size {training.batch_size} evenly; "
                "allowed: a divisor of it"
            )
    network = experiment.network
    if network.kind == "unet":
        for channels in network.channels:
            if channels % network.norm_groups:
                yield f"network.norm_groups: {network.norm_groups} does not divide network.channels {channels}"
    for run in runs:
        if run.dropout is not None and (network.kind != "unet" or not run.from_pairs):
            yield f"methods.{run.method}.dropout: only for a UNet that learns from pairs"


def check_mixture(experiment: Experiment) -> Iterator[str]:
    """What data of kind mixture and an analytic teacher need."""
    data, analytic = experiment.data, experiment.teacher.source == "analytic"
    if analytic != (data.kind == "mixture"):
        yield (
            f"teacher.source: {experiment.teacher.source!r} with data.kind {data.kind!r}; allowed: analytic with "
            "mixture, train, path or hub with the others"
        )
    if not analytic:
        if experiment.analysis.order_steps:
            yield (
                f"analysis.order_steps: {experiment.analysis.order_steps}; allowed: with data.kind mixture, where the "
                "ODE's true end is known"
            )
        return
    total = sum(component.weight for component in data.components)
    if abs(total - 1) > 1e-9:
        yield f"data.components: the weights sum to {total:g}; they must sum to 1"
    for number, component in enumerate(data.components):
        where = f"data.components.{number}"
        if len(component.mean) > data.dimension:
            yield f"{where}.mean: {len(component.mean)} coordinates, data.dimension is {data.dimension}"
        if (component.deviation is None) == (component.covariance is None):
            yield f"{where}: give either deviation or covariance"
        if component.covariance is not None and not _positive_definite(component.covariance, data.dimension):
            yield (
                f"{where}.covariance: {component.covariance} is not a symmetric positive definite matrix of "
                f"{data.dimension} × {data.dimension}"
            )
    if experiment.network.kind != "mlp":
        yield f"network.kind: {experiment.network.kind!r} with data.kind mixture; allowed: mlp"
    for key, count, most in (
        ("evaluation.count", experiment.evaluation.count, LARGEST_ASSIGNMENT),
        ("data.test_count", data.test_count, 2 * LARGEST_ASSIGNMENT),
    ):
        if count > most:
            yield (
                f"{key}: {count} is too large for exact assignment, which measures the Wasserstein distance and whose "
                f"time grows with its cube; allowed: at most {most}"
            )
    if data.test_count < 2 * experiment.evaluation.count:
        yield (
            f"data.test_count: {data.test_count}; allowed: at least 2 × evaluation.count, which is "
            f"{experiment.evaluation.count}"
        )
    for steps in experiment.analysis.order_steps:
        if experiment.schedule.steps % steps:
            yield f"analysis.order_steps: {steps} does not divide schedule.steps"


def _positive_definite(matrix: list[list[float]], size: int) -> bool:
    """Whether a matrix is size × size, symmetric and positive definite."""
    if len(matrix) != size or any(len(row) != size for row in matrix):
        return False
    import numpy as np  # Snakemake itself has imported it; a notebook without mixtures does not pay for it

    values = np.array(matrix)
    try:
        np.linalg.cholesky(values)
    except np.linalg.LinAlgError:
        return False
    return np.allclose(values, values.T, rtol=0, atol=1e-12)


def check_pairs(experiment: Experiment, runs: list[Run]) -> Iterator[str]:
    """What methods that learn from pairs, and the analyses of them, need."""
    settings = experiment.consistency_training
    edm, curriculum = settings.edm, settings.curriculum
    if edm.sigma_min >= edm.sigma_max:
        yield f"consistency_training.edm.sigma_min: {edm.sigma_min:g}; allowed: below sigma_max {edm.sigma_max:g}"
    if curriculum.s0 > curriculum.s1:
        yield f"consistency_training.curriculum.s0: {curriculum.s0}; allowed: at most s1 {curriculum.s1}"
    ids = {run.id: run for run in runs}
    for run in runs:
        where, coupling = f"methods.{run.method}", run.coupling
        yield from _check_method(where, run)
        if not run.from_pairs:
            continue
        if coupling.kind == "optimal_transport" and settings.training.batch_size > LARGEST_ASSIGNMENT:
            yield (
                f"consistency_training.training.batch_size: {settings.training.batch_size} is too large for exact "
                f"assignment, whose time grows with its cube; allowed with {run.method}: at most {LARGEST_ASSIGNMENT} "
                "(seconds a step)"
            )
        if run.velocity == "teacher" and experiment.teacher.source != "analytic":
            if run.flow != "ve":
                yield (
                    f"{where}.velocity: 'teacher' with flow {run.flow}, whose times begin at noise alone, where a "
                    "network was not trained; allowed: an analytic teacher, or flow ve"
                )
            kept = limits.kept(experiment.schedule)
            ratio = ((1 - kept) / kept) ** 0.5
            if edm.sigma_max > ratio:
                yield (
                    f"{where}.velocity: the teacher was trained up to σ/α = {ratio:.3g}; allowed: "
                    f"consistency_training.edm.sigma_max of at most that, it is {edm.sigma_max:g}"
                )
        if isinstance(coupling.generator, Frozen):
            yield from _check_frozen(where, run, ids, settings.budgets)
        if coupling.kind == "generator_induced" and coupling.generator == "ema" and not settings.training.ema_decay:
            yield (
                f"{where}.coupling.generator: 'ema' without consistency_training.training.ema_decay; allowed: online, "
                "a frozen one, or an ema_decay"
            )
    allowed = [
        method
        for method, line in experiment.methods.items()
        if experiment.draws(method) == "pairs" and line.flow in (None, "ve")
    ]
    for method in experiment.analysis.coupling_methods:
        if method not in allowed:
            yield (
                f"analysis.coupling_methods: {method!r} is not a method that learns from pairs, with flow ve; allowed: "
                f"{', '.join(allowed) or 'none here'}{nearest(method, allowed)}"
            )
    if 2 * experiment.analysis.batch_size > experiment.analysis.count:
        yield (
            f"analysis.batch_size: {experiment.analysis.batch_size}; allowed: at most half of analysis.count "
            f"{experiment.analysis.count}"
        )
    if experiment.analysis.coupling_methods and experiment.analysis.gradient_budget not in settings.budgets:
        yield (
            f"analysis.gradient_budget: {experiment.analysis.gradient_budget:g}; allowed: "
            f"consistency_training.budgets, {settings.budgets}"
        )


def _check_frozen(where: str, run: Run, ids: dict[str, Run], budgets: list[float]) -> Iterator[str]:
    """That a run's frozen generator is the student of another run, at a share of training that is kept."""
    frozen = run.coupling.generator
    source = ids.get(f"{frozen.method}-s{run.seed}")
    if source is None or not source.from_pairs or frozen.method == run.method:
        others = [other for other in ids.values() if other.from_pairs and other.seed == run.seed]
        allowed = sorted({other.method for other in others} - {run.method})
        yield (
            f"{where}.coupling.generator.method: {frozen.method!r} has no run from pairs with seed {run.seed}; "
            f"allowed: {', '.join(allowed) or 'none here'}{nearest(frozen.method, allowed)}"
        )
    if source.flow != run.flow:
        yield (
            f"{where}.coupling.generator.method: {frozen.method!r} has flow {source.flow}; allowed: {run.flow}, the "
            "run's own"
        )
    if isinstance(source.coupling.generator, Frozen):
        yield f"{where}.coupling.generator.method: {frozen.method!r} has a frozen generator itself"
    if frozen.budget not in budgets:
        yield f"{where}.coupling.generator.budget: {frozen.budget:g}; allowed: consistency_training.budgets, {budgets}"


def _check_method(where: str, run: Run) -> Iterator[str]:
    """That draws, flow, parameterisation and coupling of a method go together."""
    flows = ["ve", "linear", "trigflow"] if run.from_pairs else ["vp"]
    if run.flow not in flows:
        yield f"{where}.flow: {run.flow!r} with draws {run.draws}; allowed: {', '.join(flows)}"
    if run.parameterisation != OF_FLOW[run.flow]:
        yield f"{where}.parameterisation: {run.parameterisation!r} with flow {run.flow}; allowed: {OF_FLOW[run.flow]}"
    if run.from_pairs and run.flow != "ve" and run.coupling.kind == "generator_induced":
        yield f"{where}.coupling: generator_induced with flow {run.flow}; allowed: with flow ve"
    alone = {"coupling": run.coupling is not None, "velocity": run.velocity != "pair", "times": run.times is not None}
    if wrong := [key for key, is_set in alone.items() if is_set and not run.from_pairs]:
        yield f"{where}.{wrong[0]}: belongs to methods that learn from pairs, not to {run.objective}"
