"""Claims as data: the papers' own in claims.yaml, and a user's in a preset. `report.verdicts` decides them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, Tag, model_validator

from . import strict
from .names import nearest
from .sources import NAME, Count, OneLine, Strict

# What velocity_gap.py compares, and the velocities whose losses it measures.
COUPLINGS = ("independent", "optimal_transport", "generator_induced")
_LOSSES = ("cd", *(f"{velocity} {name}" for velocity in ("ct", "cd") for name in COUPLINGS))


class Metric(NamedTuple):
    """A metric that claims may name.

    Attributes:
        words: its name in sentences.
        references: what it compares with.
        points: the points X of `metric@X=number` that are measured too.
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
    "loss": Metric("Squared loss", _LOSSES, ("steps",)),
    "velocity_gap": Metric("Velocity gap", COUPLINGS, ("steps",)),
    "transport_cost": Metric("Transport cost", (*COUPLINGS, "exact optimal transport")),
}
OF_FEATURES = ("frechet_distance", "kernel_distance", "precision", "recall")  # each extractor has its own
OF_COUPLINGS = ("loss", "velocity_gap", "transport_cost")
_POINTS = {"budget": "at {:.3g} of training", "steps": "at {:,.0f} steps", "s": "at s = {:g}"}
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
        pattern=r"^\w+(@\w+=\d+(\.\d+)?(e-?\d+)?)?$",
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
        """The point of the training or grid that the metric is measured at, such as ("budget", 0.25)."""
        kind, _, number = self.metric.partition("@")[2].partition("=")
        return (kind, float(number)) if kind else None

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


def _read() -> dict[str, Claim]:
    return {name: Claim(name=name, **value) for name, value in strict.read(Path(__file__).with_suffix(".yaml")).items()}


CLAIMS = _read()


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
