"""Claims as data: the papers' own in claims.yaml, and a user's in a preset; and their checks. `report.verdicts` decides
them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, Tag, model_validator

from ..errors import ConfigError
from . import strict
from .names import nearest
from .sources import NAME, Count, OneLine, Strict

if TYPE_CHECKING:
    from .settings import Experiment, Run

# What velocity_gap.py compares.
COUPLINGS = ("independent", "optimal_transport", "generator_induced")


class Metric(NamedTuple):
    """A metric that claims may name.

    Attributes:
        words: its name in sentences.
        references: what it compares with.
        points: the points X of `metric@X=number` that are measured too, and `sigma_max` of `metric@sigma_max`.
    """

    words: str
    references: tuple[str, ...]
    points: tuple[str, ...] = ()


_SETS = ("teacher", "data")
METRICS = {
    "ode_error": Metric("ODE error", ("teacher", "truth"), ("budget", "s")),
    "frechet_distance": Metric("Fréchet distance", _SETS, ("budget",)),
    "kernel_distance": Metric("Kernel distance", _SETS),
    "precision": Metric("Precision", _SETS),
    "recall": Metric("Recall", _SETS),
    "wasserstein": Metric("Wasserstein distance", _SETS, ("budget",)),
    "recognised": Metric("Share recognised", ("labels",)),
    "clip_score": Metric("CLIP score", ("prompts",)),
    "aesthetic_score": Metric("Aesthetic score", ("none",)),
    "loss": Metric("Squared loss", ("cd", "ct independent"), ("steps",)),
    "velocity_gap": Metric("Velocity gap", COUPLINGS, ("steps",)),
    "velocity_variance": Metric(
        "Variance of the velocity", (*COUPLINGS, "generator_induced exact"), ("sigma", "sigma_max")
    ),
    "transport_cost": Metric("Transport cost", (*COUPLINGS, "exact optimal transport")),
}
OF_FEATURES = ("frechet_distance", "kernel_distance", "precision", "recall")  # each extractor has its own
OF_COUPLINGS = ("loss", "velocity_gap", "velocity_variance", "transport_cost")
_POINTS = {
    "budget": "at {:.3g} of training",
    "steps": "at {:,.0f} steps",
    "s": "at s = {:g}",
    "sigma_max": "at the largest σ",
}
Reference = Annotated[str, Field(pattern=r"^\w[\w .-]*$", max_length=100)]


class References(Strict):
    """What each side is measured against, where the two differ."""

    ours: Reference = Field(description="of the first side")
    other: Reference = Field(description="of the second side")


class Quantity(Strict):
    """One ratio: a metric of one method over that of another."""

    ours: str = Field(description="the method whose metric is the numerator")
    other: str = Field(description="the method whose metric is the denominator")
    metric: str = Field(
        pattern=r"^\w+(@(\w+=\d+(\.\d+)?(e-?\d+)?|sigma_max))?$",
        max_length=100,
        description="as in metrics.csv, such as frechet_distance, or wasserstein@budget=0.25",
    )
    reference: Reference | References = Field(
        description="as in metrics.csv, such as data or teacher; {ours, other} where the sides have different ones"
    )
    direction: Literal["below", "above"] = Field(description="the claimed side of 1")
    extractor: str | None = Field(None, description="the one whose features count; by default each has a verdict")

    @model_validator(mode="after")
    def _two_sides(self) -> Quantity:
        if self.sides[0] == self.sides[1]:
            raise ValueError("allowed: two methods, or one with two references")
        return self

    @property
    def base(self) -> str:
        """The metric without its point."""
        return self.metric.partition("@")[0]

    @property
    def point(self) -> tuple[str, float] | None:
        """The point of the training or grid that the metric is measured at, such as ("budget", 0.25) or
        ("sigma_max", inf)."""
        kind, _, number = self.metric.partition("@")[2].partition("=")
        return (kind, float(number or "inf")) if kind else None

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Method and reference of ours, and of the other."""
        both = self.reference
        ours, other = (both, both) if isinstance(both, str) else (both.ours, both.other)
        return (self.ours, ours), (self.other, other)

    @property
    def names(self) -> tuple[str, str]:
        """What tells the two sides apart: their methods, else their references."""
        (ours, first), (other, second) = self.sides
        return (ours, other) if ours != other else (first, second)

    @property
    def label(self) -> str:
        """The ratio in words, such as `Fréchet distance to data, direct/cm > 1`."""
        words = METRICS[self.base].words if self.base in METRICS else self.base
        if self.reference in (*_SETS, "truth"):
            words += f" to {self.reference}"
        if self.point is not None:
            kind, number = self.point
            words += f" {_POINTS.get(kind, f'at {kind} = {{:g}}').format(number)}"
        ours, other = (name.replace("_", " ") if self.ours == self.other else name for name in self.names)
        return f"{words}, {ours}/{other} {'<' if self.direction == 'below' else '>'} 1"


class _About(Strict):
    """What a claim says of itself beside its quantities."""

    paper: Annotated[str, Field(pattern=r"^\w*$", max_length=20)] = Field("", description="the paper that claims it")
    universal: bool = Field(False, description="it holds in every condition, rather than in all of them pooled")
    sampling_steps: Annotated[
        list[Count] | None, BeforeValidator(lambda value: [value] if isinstance(value, int) else value)
    ] = Field(None, min_length=1, description="numbers of sampling steps; by default 1, of a universal claim all")


class Claim(_About):
    """A claim about one or several quantities, each of which has a verdict."""

    name: str = Field(pattern=NAME, max_length=100, description="in tables; once in an experiment")
    sentence: OneLine = Field(description="what is claimed, in words")
    quantities: list[Quantity] = Field(min_length=1, description="what is compared")


def _of_quantity(words: Callable[[Quantity], str]) -> Callable[[dict[str, Any]], str]:
    """A default value in words of the quantity; empty where the quantity is not valid, which pydantic reports."""

    def value(data: dict[str, Any]) -> str:
        if not data.keys() >= Quantity.model_fields.keys():
            return ""
        return words(Quantity.model_construct(**{field: data[field] for field in Quantity.model_fields}))

    return value


def _name(quantity: Quantity) -> str:
    (ours, first), (other, second) = quantity.sides
    return "-".join(dict.fromkeys([ours, other, quantity.metric, first, second])).replace(" ", "_")


class Comparison(Quantity, _About):
    """A claim about one quantity."""

    name: str = Field(
        default_factory=_of_quantity(_name),
        pattern=NAME,
        max_length=100,
        description="in tables; by default of what is compared",
    )
    sentence: OneLine = Field(
        default_factory=_of_quantity(lambda quantity: quantity.label),
        description="what is claimed, in words; by default the ratio",
    )

    @property
    def quantities(self) -> list[Quantity]:
        """The quantity itself, as the one of the claim."""
        return [self]


CLAIMS = {name: Claim(name=name, **value) for name, value in strict.read(Path(__file__).with_suffix(".yaml")).items()}


def _built_in(name: Any) -> Claim:
    if name not in list(CLAIMS):
        raise ValueError(f"allowed: {', '.join(CLAIMS)}, or a mapping{nearest(str(name), list(CLAIMS))}")
    return CLAIMS[name]


def _kind(value: Any) -> str:
    """The class of a claim in a preset; the tag is part of pydantic's paths (`messages.message`)."""
    if isinstance(value, dict):
        return "Claim" if "quantities" in value else "Comparison"
    return type(value).__name__ if isinstance(value, Claim | Comparison) else "Name"


AnyClaim = Annotated[
    Annotated[Claim, PlainValidator(_built_in, json_schema_input_type=Literal[tuple(CLAIMS)]), Tag("Name")]
    | Annotated[Comparison, Tag("Comparison")]
    | Annotated[Claim, Tag("Claim")],
    Discriminator(_kind),
]


def check(experiment: Experiment, runs: list[Run], extra_metrics: Sequence[str] = ()) -> Iterator[str]:
    """Check that claims compare what is measured, where their methods have runs.

    A built-in claim has quantities for all presets; one of them at least is of methods of this one. A claim of the
    user's own has only what it means.

    Args:
        extra_metrics: names of metrics beside the built-in ones.

    Yields:
        Problems: one line with the key's path, what was given, what is allowed.
    """
    methods = {run.method for run in runs}
    for number, claim in enumerate(experiment.claims):
        where, sides = f"claims.{number}", [{method for method, _ in q.sides} for q in claim.quantities]
        if claim == CLAIMS.get(claim.name):
            where = f"claims: {claim.name}"
            if not any(both <= set(experiment.methods) for both in sides):
                compared = ", ".join(sorted(set().union(*sides)))
                yield f"{where} compares {compared}; methods has {list(experiment.methods)}"
        elif claim.name in CLAIMS:
            yield f"{where}.name: {claim.name!r} is a built-in claim's; choose another"
        for position, (quantity, both) in enumerate(zip(claim.quantities, sides, strict=True)):
            if claim.name not in CLAIMS:
                part = where if quantity is claim else f"{where}.quantities.{position}"
                yield from _check_words(part, experiment, quantity, extra_metrics)
                if both <= methods:
                    compared = [run for run in runs if run.method in both]
                    yield from _check_measured(part, experiment, quantity, compared)
                    yield from _check_paired(part, experiment, claim, compared)
            if both <= methods:
                yield from _check_point(where, experiment, quantity)
        for steps in claim.sampling_steps or ():
            if steps not in experiment.evaluation.sampling_steps:
                yield (
                    f"{where}.sampling_steps: {steps}; allowed: of evaluation.sampling_steps, "
                    f"{experiment.evaluation.sampling_steps}"
                )


def _check_words(where: str, experiment: Experiment, quantity: Quantity, extra_metrics: Sequence[str]) -> Iterator[str]:
    """Methods, metric, references and extractor of a quantity are ones that there are."""
    data, base = experiment.data.kind, quantity.base
    extractors = [experiment.classifier.name if e.kind == "classifier" else e.kind for e in experiment.extractors]
    words = [("ours", quantity.ours, list(experiment.methods)), ("other", quantity.other, list(experiment.methods))]
    words.append(("metric", base, [*METRICS, *extra_metrics]))
    if base in METRICS:
        words += [("reference", reference, METRICS[base].references) for _, reference in quantity.sides]
        if quantity.point is not None:
            allowed = [f"{base}@{point}=…" for point in METRICS[base].points]
            words.append(("metric", f"{base}@{quantity.point[0]}=…", [base, *allowed]))
    if quantity.extractor is not None:
        if base in METRICS and base not in OF_FEATURES:
            yield f"{where}.extractor: {base} has none; allowed with {', '.join(OF_FEATURES)}"
        words.append(("extractor", quantity.extractor, ["coordinates"] if data == "mixture" else extractors))
    for key, word, allowed in words:
        if word not in allowed:
            yield f"{where}.{key}: unknown {word!r}; allowed: {', '.join(allowed)}{nearest(word, allowed)}"


def _check_measured(where: str, experiment: Experiment, quantity: Quantity, runs: list[Run]) -> Iterator[str]:
    """A built-in metric of a quantity whose methods have these runs is one that the experiment measures."""
    exact, base = experiment.teacher.source == "analytic", quantity.base
    references, point = {reference for _, reference in quantity.sides}, (quantity.point or ("",))[0]
    extractors = {extractor.kind: extractor for extractor in experiment.extractors}
    pairs, targets = all(run.from_pairs for run in runs), not any(run.from_pairs for run in runs)
    analysed = {run.method for run in runs} <= set(experiment.analysis.coupling_methods)
    for asked, there, needs in (
        ("truth" in references, exact, "teacher.source analytic"),
        ("teacher" in references, targets, "methods that learn from targets"),
        (point == "budget", pairs, "methods that learn from pairs"),
        (point == "s", targets, "methods that learn from targets"),
        (base == "wasserstein", experiment.data.kind == "mixture", "data.kind mixture"),
        (base == "recognised", "classifier" in extractors, "the extractor classifier"),
        (base in ("clip_score", "aesthetic_score"), "clip" in extractors, "the extractor clip"),
        (base == "aesthetic_score", getattr(extractors.get("clip"), "aesthetic", None), "aesthetic of extractor clip"),
        (base in ("loss", "velocity_gap"), exact, "teacher.source analytic"),
        (base in OF_COUPLINGS, analysed, "methods of analysis.coupling_methods"),
    ):
        if asked and not there and base in METRICS:
            yield f"{where}.metric: {quantity.metric} is not measured here; allowed with {needs}"


def _check_paired(where: str, experiment: Experiment, claim: Claim | Comparison, runs: list[Run]) -> Iterator[str]:
    """The methods of a quantity, of which these are the runs, share a condition and a number of sampling steps."""
    configured = experiment.evaluation.sampling_steps
    wanted = claim.sampling_steps or (configured if claim.universal else [1])
    methods = sorted({run.method for run in runs})
    both = " and ".join(methods)
    sides = [[run for run in runs if run.method == method] for method in methods]
    groups = set.intersection(*({run.group for run in side} for side in sides))
    steps = set.intersection(*({n for run in side for n in run.sampling_steps(configured)} for side in sides))
    if not groups:
        yield f"{where}: {both} have no condition in common; allowed: methods whose runs share one"
    if not steps & set(wanted):
        allowed = ", ".join(map(str, sorted(steps))) or "none"
        yield f"{where}.sampling_steps: {both} are not both sampled in {wanted}; allowed: {allowed}"


def _check_point(where: str, experiment: Experiment, quantity: Quantity) -> Iterator[str]:
    """The grid or share of training that a quantity names is measured."""
    kind, number = quantity.point or ("", 0.0)
    analysis, budgets = experiment.analysis, experiment.consistency_training.budgets
    if kind == "steps" and (quantity.ours not in analysis.coupling_methods or number not in analysis.steps):
        yield (
            f"{where} needs {quantity.ours} in analysis.coupling_methods and {number:g} in analysis.steps; they are "
            f"{analysis.coupling_methods} and {analysis.steps}"
        )
    if kind == "budget" and number not in budgets:
        yield f"{where} needs {number:g} in consistency_training.budgets; they are {budgets}"


def check_shared(experiments: dict[str, Experiment]) -> None:
    """Check that claims of one name, which share a part of the table, say the same in every experiment.

    Raises:
        ConfigError: two of them differ; names the second.
    """
    first: dict[str, tuple[str, Claim | Comparison]] = {}
    for name, experiment in experiments.items():
        for number, claim in enumerate(experiment.claims):
            other, same = first.setdefault(claim.name, (name, claim))
            if claim != same:
                where = f"{name}: claims.{number}.name"
                raise ConfigError(f"{where}: {claim.name!r} is another claim in {other}; rename one")
