"""The rule that decides claims.

A quantity is a ratio, and its claim a side of a bound, mostly 1. Around the bound lies a zone of no practical
difference, by default from bound / 1.05 to bound · 1.05. The log-ratios of a condition are paired by replicate; the
verdict follows from the 95 % interval of their mean (Student's t) alone:

    reproduced     the interval lies on the claimed side of the zone
    contradicted   it lies on the other side
    no difference  it lies within the zone
    inconclusive   it does none of these, there are fewer than three replicates, or a pair has no ratio

Where the claim is that the ratio equals the bound, an interval within the zone reproduces it and one outside
contradicts it. A condition of which one run is unsound is `unsound`, whatever its numbers say, and counts no further.

The overall row of a claim is decided

 1. by its conditions, where each by itself says the same;
 2. as `mixed`, where one condition says reproduced and another (or the mean) contradicted, conditions at 5 % after
    Holm's correction over them;
 3. by the interval of their mean, three conditions or more taken as a sample of all such (`statistics.pooled`);
 4. as `mixed`, where one shows no difference and another (or the mean) does; else it is inconclusive.

A claim of every condition is reproduced by 1 alone, contradicted by one condition after Holm's correction over them,
and mixed where they say different things; its row shows the least favourable condition. Overall rows of an experiment
are tested together, by Holm's correction: 1, 3 and a contradicted claim of every condition take the level that it
leaves.

No single replicate decides: to leave one out moves a mean by at most s/√n, and the mean of a decided condition is
t s/√n > s/√n away from the edge of its zone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .ratios import ratio
from .statistics import LEVEL, SAMPLED, Estimate, Interval, Pooled, holm

MINIMUM_SEEDS = 3
VERDICTS = ("reproduced", "contradicted", "mixed", "no difference", "inconclusive", "unsound")
NAMED = 3  # most conditions that a reason names of each verdict


@dataclass(frozen=True)
class Criterion:
    """What a quantity claims of its ratio.

    Attributes:
        direction: below, above or equal to the bound.
        margin: share of the bound that makes no practical difference.
    """

    direction: str
    bound: float = 1.0
    margin: float = 0.05

    def verdict(self, interval: Interval) -> str:
        """What an interval of log-ratios says."""
        _, low, high = interval
        middle, width = math.log(self.bound), math.log1p(self.margin)
        if middle - width <= low and high <= middle + width:
            return "reproduced" if self.direction == "equal" else "no difference"
        if low > middle + width:
            return "reproduced" if self.direction == "above" else "contradicted"
        if high < middle - width:
            return "reproduced" if self.direction == "below" else "contradicted"
        return "inconclusive"

    def reason(self, interval: Interval, level: float = LEVEL) -> str:
        """The same in words; a level of Holm's correction is named."""
        mean, low, high = interval
        said, middle, near = (
            self.verdict(interval),
            math.log(self.bound),
            f"{100 * self.margin:.3g} % of {self.bound:g}",
        )
        if said == ("reproduced" if self.direction == "equal" else "no difference"):
            words = f"lies within {near}"
        elif said != "inconclusive":
            side, percent = ("above" if mean > middle else "below"), near.partition(" of ")[0]
            words = f"lies {side} {self.bound:g}" + f" by more than {percent}" * bool(self.margin)
        elif self.direction == "equal":
            words = f"reaches beyond {near}"
        else:
            words = f"covers {self.bound:g}" if low <= middle <= high else f"comes within {near}"
        share = "" if level == LEVEL else f"{100 * (1 - level):.4g} % "
        return f"{share}interval [{ratio(low):.3g}, {ratio(high):.3g}] {words}{' (Holm)' * bool(share)}"


@dataclass(frozen=True)
class Condition:
    """One condition of a quantity.

    Attributes:
        ratios: seed → log-ratio.
        problem: why it is not decided, whatever its ratios; else empty.
        unsound: why one of its runs is not sound; else empty.
        notes: what it lacks.
        paired: both sides have values.
    """

    group: str
    sampling_steps: int
    criterion: Criterion
    estimate: Estimate
    ratios: dict[int, float]
    problem: str = ""
    unsound: str = ""
    notes: tuple[str, ...] = ()
    paired: bool = True

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.group}, {self.sampling_steps}-step"

    def verdict(self, level: float = LEVEL) -> str:
        """What it says by itself."""
        if self.unsound:
            return "unsound"
        return "inconclusive" if self.problem else self.criterion.verdict(self.estimate.interval(level))

    def reason(self, level: float = LEVEL) -> str:
        """The verdict's reason in words."""
        reason = self.unsound or self.problem or self.criterion.reason(self.estimate.interval(level), level)
        return "; ".join([reason, *self.notes])


@dataclass(frozen=True)
class Overall:
    """All conditions of a quantity, or every one of them.

    Attributes:
        conditions: those that both sides have; the sound ones, unless none is.
        pooled: their mean.
        problem: why their mean is not decided, whatever its interval; else empty.
        notes: what is left out.
    """

    conditions: list[Condition]
    criterion: Criterion
    pooled: Pooled
    universal: bool = False
    problem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def unsound(self) -> bool:
        """No condition is sound."""
        return all(condition.unsound for condition in self.conditions)

    def decide(self, level: float = LEVEL) -> tuple[str, str, Estimate]:
        """Verdict, its reason, and the estimate that the row shows, tested at a level."""
        if self.unsound or len(self.conditions) == 1:
            first = self.conditions[0]
            verdict, reasons = first.verdict(level), [first.reason(level)]
            shown = first.estimate if len(self.conditions) == 1 else self.pooled.estimate
        else:
            verdict, reasons, shown = (self._every if self.universal else self._together)(level)
        return verdict, "; ".join([*reasons, *self.notes]), shown

    def _corrected(self, level: float) -> dict[str, list[tuple[Condition, float]]]:
        """Verdict → conditions that have it after Holm's correction, each with its level."""
        levels = holm(self.conditions, lambda condition, at: condition.verdict(at) != "inconclusive", level)
        said: dict[str, list[tuple[Condition, float]]] = {}
        for condition, at in zip(self.conditions, levels, strict=True):
            said.setdefault(condition.verdict(at), []).append((condition, at))
        return said

    def _agreed(self, level: float) -> str:
        """What every condition says by itself, if they agree; a decision of all needs no correction."""
        said = {condition.verdict(level) for condition in self.conditions}
        return said.pop() if len(said) == 1 and "inconclusive" not in said else ""

    def _names(self, conditions: list[Condition]) -> str:
        alike = len({condition.sampling_steps for condition in self.conditions}) == 1
        names = [c.group if alike else f"{c.group} ({c.sampling_steps}-step)" for c in conditions]
        last = f"{len(names) - NAMED} more" if len(names) > NAMED else names.pop()
        return " and ".join([", ".join(names[:NAMED]), last] if names else [last])

    def _mixed(self, said: dict[str, list[tuple[Condition, float]]], mean: str = "") -> list[str]:
        """Which condition decides what."""
        parts = []
        for verdict in VERDICTS:
            names = [self._names([condition for condition, _ in said[verdict]])] if verdict in said else []
            names += ["the mean over conditions"] if verdict == mean != "inconclusive" else []
            parts += [f"{verdict} in {' and '.join(names)}"] if names and verdict != "inconclusive" else []
        return parts

    def _together(self, level: float) -> tuple[str, list[str], Estimate]:
        """By agreement, else by the mean and what contradicts it."""
        shown, said = self.pooled.estimate, self._corrected(LEVEL)
        low, high = (ratio(value) for value in self.pooled.prediction)
        further = [f"a further condition: [{low:.3g}, {high:.3g}]"] if math.isfinite(high) else []
        few = "" if len(self.conditions) >= SAMPLED else "two conditions are too few for their mean to decide"
        interval, problem = shown.interval(level), few or self.problem
        mean = "inconclusive" if problem else self.criterion.verdict(interval)
        words = problem if few else f"mean over conditions: {problem or self.criterion.reason(interval, level)}"
        if agreed := self._agreed(level):
            return agreed, ["each condition by itself", *further], shown
        votes = ({*said} | {mean}) - {"inconclusive"}
        if {"reproduced", "contradicted"} <= votes or (mean not in ("reproduced", "contradicted") and len(votes) > 1):
            return "mixed", [*self._mixed(said, mean), *further], shown
        others = {verdict: conditions for verdict, conditions in said.items() if verdict != mean}
        return mean, [words, *self._mixed(others), *further], shown

    def _every(self, level: float) -> tuple[str, list[str], Estimate]:
        """By the least favourable condition."""
        said, middle = self._corrected(level), math.log(self.criterion.bound)
        sign = {"below": 1, "above": -1}.get(self.criterion.direction)

        def decisive(conditions: list[tuple[Condition, float]]) -> tuple[str, Estimate]:
            """The condition whose mean is furthest on the other side."""
            measured = [(c, at) for c, at in conditions if c.ratios] or conditions
            distances = [c.estimate.mean - middle for c, _ in measured]
            distances = [sign * distance if sign else abs(distance) for distance in distances]
            condition, at = measured[distances.index(max(distances))]
            return f"{self._names([condition])}: {condition.reason(at)}", condition.estimate

        if against := said.get("contradicted"):
            reason, shown = decisive(against)
            return "contradicted", [reason], shown
        if agreed := self._agreed(level):
            reason, shown = decisive([(condition, level) for condition in self.conditions])
            return agreed, [f"least favourable: {reason}"], shown
        each = self._corrected(LEVEL)
        if len({*each} - {"inconclusive"}) > 1:
            worse = each.get("contradicted") or each["no difference"]
            return "mixed", self._mixed(each), decisive(worse)[1]
        undecided = said["inconclusive"]
        reason, shown = decisive([(c, at) for c, at in undecided if c.verdict(level) != "reproduced"] or undecided)
        return "inconclusive", [reason], shown
