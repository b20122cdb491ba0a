"""How often verdicts are false, and how many replicates a decision needs: `python benchmarks/verdict_errors.py`.

Log-ratios are drawn as in the real design, μ + c_k + a_r + e_kr of condition k and replicate r: a_r is the teacher's
and the noise's, shared by all conditions of a replicate, with four times and once the deviation of the student's e_kr.
The rule itself (`consistency.report.decisions`) decides each draw. A decision, reproduced or contradicted, is false
where neither the mean over conditions in general nor each of the drawn conditions lies beyond the margin on its side.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from consistency.report.decisions import MINIMUM_SEEDS, Condition, Criterion, Overall
from consistency.report.statistics import LEVEL, estimate, pooled

TEACHER, NOISE = 4, 1  # deviations in units of the student's
REPLICATES = 5
DESIGNS = (1, 2, 5)  # numbers of conditions
EFFECTS = (1.1, 1.25, 1.5, 2.0)
DEVIATIONS = (0.02, 0.05, 0.1, 0.2, 0.4)
ROWS = 10  # of an experiment, for Holm's correction


class Null(NamedTuple):
    """A truth in which a plain row should not be decided.

    Attributes:
        student: deviation of the student's effect.
        effect: true mean of the log-ratios.
        spread: deviation of the conditions' effects; drawn anew for each row, or `fixed` with a sum of 0.
    """

    words: str
    student: float
    effect: float = 0.0
    spread: float = 0.0
    fixed: bool = False

    def applies(self, design: int) -> bool:
        """Whether a design has what it is about."""
        return design > 1 or not self.spread

    def conditions(self, design: int, rng: np.random.Generator) -> np.ndarray:
        """The conditions' effects."""
        if self.fixed:
            return self.effect + self.spread * np.linspace(-1, 1, design)
        return self.effect + self.spread * rng.normal(size=design)


_EDGE = math.log(1.05)
NULLS = (
    Null("no effect, small noise", 0.02),
    Null("no effect, large noise", 0.2),
    Null("effect at the margin's edge", 0.2, effect=-_EDGE),
    Null("conditions ± 0.3 around none", 0.05, spread=0.3, fixed=True),
    Null("conditions drawn, deviation 0.1", 0.05, spread=0.1),
    Null("conditions drawn, deviation 0.5", 0.05, spread=0.5),
)


def drawn(rng: np.random.Generator, effects: np.ndarray, student: float, teacher: float = TEACHER) -> np.ndarray:
    """Log-ratios (conditions, replicates)."""
    shared = student * (teacher * rng.normal(size=REPLICATES) + NOISE * rng.normal(size=REPLICATES))
    return effects[:, None] + shared + student * rng.normal(size=(len(effects), REPLICATES))


def verdict(values: np.ndarray, level: float = LEVEL) -> str:
    """What the overall row of a plain claim says, with direction below."""
    criterion = Criterion("below")
    conditions = [
        Condition(f"c{k}", 1, criterion, estimate(row.tolist()), dict(enumerate(row.tolist())))
        for k, row in enumerate(values)
    ]
    return Overall(conditions, criterion, pooled(values)).decide(level)[0]


def rates(design: int, null: Null, draws: int, seed: int = 0) -> tuple[float, float]:
    """Share of rows that are decided falsely, and share of those whose decision is true of each condition drawn."""
    rng, false, true = np.random.default_rng([seed, design, NULLS.index(null)]), 0, 0
    for _ in range(draws):
        effects = null.conditions(design, rng)
        said = verdict(drawn(rng, effects, null.student))
        agree = {"reproduced": (effects < -_EDGE).all(), "contradicted": (effects > _EDGE).all()}
        false += not agree.get(said, True)
        true += bool(agree.get(said, False))
    return false / draws, true / draws


def wrong_rule(draws: int, student: float = 0.05, seed: int = 0) -> float:
    """Share of rows decided falsely under no effect, where the five replicates are students of one teacher."""
    rng, false = np.random.default_rng(seed), 0
    for _ in range(draws):
        teacher = rng.normal() * TEACHER * student
        false += verdict(teacher + student * rng.normal(size=(1, REPLICATES))) in ("reproduced", "contradicted")
    return false / draws


def decided(design: int, effect: float, student: float, draws: int, seed: int = 0) -> float:
    """Share of rows that are reproduced where every condition has this ratio below 1."""
    rng, effects = np.random.default_rng([seed, design]), np.full(design, -math.log(effect))
    return sum(verdict(drawn(rng, effects, student)) == "reproduced" for _ in range(draws)) / draws


def power(deviation: float, effect: float, replicates: int, level: float = LEVEL, margin: float = 0.05) -> float:
    """Probability that a condition is decided, by the noncentral t distribution.

    Args:
        deviation: of the log-ratio over replicates.
        effect: the true ratio, above or below 1.
    """
    from scipy import stats

    shift = (abs(math.log(effect)) - math.log1p(margin)) * math.sqrt(replicates) / deviation
    return float(stats.nct.sf(stats.t.ppf(1 - level / 2, replicates - 1), replicates - 1, shift))


def replicates_needed(deviation: float, effect: float, level: float = LEVEL, most: int = 200) -> int | None:
    """The smallest number of replicates with a power of 80 %. None: more than `most`."""
    counts = range(MINIMUM_SEEDS, most + 1)
    return next((n for n in counts if power(deviation, effect, n, level) >= 0.8), None)


def table(heading: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    for cells in (heading, ["---"] * len(heading), *rows):
        print(f"| {' | '.join(cells)} |")
    print()


def main() -> None:
    """Print the tables of docs/metrics.md."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=4000, help="rows drawn for each rate")
    draws = parser.parse_args().draws
    heading = ["decided falsely, of rows with 5 replicates", *(f"{k} condition{'s' * (k > 1)}" for k in DESIGNS)]
    rows = []
    for null in NULLS:
        both = [rates(k, null, draws) if null.applies(k) else None for k in DESIGNS]
        rows.append([null.words, *(f"{pair[0]:.1%}" if pair else "–" for pair in both)])
        if null.spread and not null.fixed:
            words = "the same, decided and true of each condition drawn"
            rows.append([words, *(f"{pair[1]:.0%}" if pair else "–" for pair in both)])
    rows.append(["replicates of students of one teacher (wrong), no effect", f"{wrong_rule(draws):.0%}", "–", "–"])
    table(heading, rows)
    heading = ["reproduced, of rows with 5 replicates, student's deviation 0.02", *heading[1:]]
    rows = [[f"ratio 1/{e:g} in each", *(f"{decided(k, e, 0.02, draws):.0%}" for k in DESIGNS)] for e in EFFECTS]
    table(heading, rows)
    rows = []
    for deviation in DEVIATIONS:
        cells = []
        for effect in EFFECTS:
            counts = [replicates_needed(deviation, effect, level) for level in (LEVEL, LEVEL / ROWS)]
            cells.append(" / ".join("> 200" if count is None else str(count) for count in counts))
        rows.append([f"{deviation:g}", *cells])
    table([f"replicates needed: alone / first of {ROWS} rows", *(f"ratio {e:g}" for e in EFFECTS)], rows)


if __name__ == "__main__":
    main()
