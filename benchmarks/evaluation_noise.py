"""How much of a ratio's spread is the noise of the evaluation's own samples, by their number.

    python benchmarks/evaluation_noise.py RESULTS EXPERIMENT [--ours direct] [--other cm]

For each condition, the log-ratio of two students' distances to the data (Fréchet, and of mixtures the stratified
Wasserstein distance) is computed again on evaluation samples drawn with replacement, the same ones for both students,
which start from the same noises. Its deviation over such draws is what other evaluation noises would do; beside it
stands the deviation over the replicates of the experiment. Evaluation is large enough where the first is well below
the second.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

from consistency.evaluate.distances import FeatureSet, frechet_distance
from consistency.evaluate.measure import modes_of, read_arrays
from consistency.evaluate.modes import Modes, stratified_wasserstein
from consistency.files.storage import read_json
from consistency.flow.streams import generator

DRAWS = 100


def deviations(
    ours: np.ndarray,
    other: np.ndarray,
    reference: FeatureSet,
    modes: Modes | None,
    counts: list[int],
    draws: int = DRAWS,
) -> dict[tuple[str, int], float]:
    """Metric and number of samples → standard deviation of the log-ratio over bootstrap draws.

    Args:
        ours, other: features (n, d) of two students' samples from the same noises.
        modes: of a mixture, or None.
    """
    metrics = {"frechet_distance": lambda x: frechet_distance(FeatureSet(x), reference)}
    if modes:
        metrics["stratified_wasserstein"] = partial(stratified_wasserstein, modes)
    found = {}
    for count in counts:
        rows = [generator(0, "bootstrap", count, draw).integers(0, len(ours), count) for draw in range(draws)]
        for name, metric in metrics.items():
            ratios = [np.log(metric(ours[chosen]) / metric(other[chosen])) for chosen in rows]
            found[name, count] = float(np.std(ratios, ddof=1))
    return found


def _features(folder: Path, run: str, extractor: str) -> np.ndarray:
    return read_arrays(folder / "features" / f"{run}.safetensors")[f"{extractor}/steps_1.features"]


def _pairs(folder: Path, ours: str, other: str) -> dict[str, list[tuple[str, str]]]:
    """Condition → the runs of both methods, by seed."""
    names = {path.stem for path in (folder / "features").glob("*.safetensors")}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(names):
        match = f"{other}{name.removeprefix(ours)}"
        if name.startswith(f"{ours}-") and match in names:
            pairs.setdefault(name.removeprefix(f"{ours}-").rpartition("s")[0].strip("-") or "scratch", []).append(
                (name, match)
            )
    return pairs


def main() -> None:
    """Print a table: a row for each condition and metric, a column for each number of samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("experiment")
    parser.add_argument("--ours", default="direct")
    parser.add_argument("--other", default="cm")
    arguments = parser.parse_args()
    folder = arguments.results / arguments.experiment
    data = read_arrays(folder / "features" / "data.safetensors")
    key = next(key for key in data if key.endswith("_images.features"))
    extractor, modes, reference = key.split("/")[0], modes_of(data), FeatureSet(data[key])
    pairs = _pairs(folder, arguments.ours, arguments.other)
    if not pairs:
        sys.exit(f"{folder}: no runs of {arguments.ours} and {arguments.other} in one condition")
    header: list[int] = []
    for condition, runs in pairs.items():
        sets = [tuple(_features(folder, run, extractor) for run in pair) for pair in runs]
        size = len(sets[0][0])
        counts = [size // 4, size // 2, size]
        if counts != header:
            header = counts
            print(f"| condition | metric | {' | '.join(f'{n} samples' for n in counts)} | replicates ({len(runs)}) |")
            print("|---|---|" + "---|" * (len(counts) + 1))
        found = deviations(*sets[0], reference, modes, counts)
        for metric in dict.fromkeys(name for name, _ in found):
            cells = [f"{found[metric, count]:.3f}" for count in counts]
            print(f"| {condition} | {metric} | {' | '.join(cells)} | {_over_replicates(folder, runs, metric)} |")


def _over_replicates(folder: Path, runs: list[tuple[str, str]], metric: str) -> str:
    """The log-ratio's deviation over replicates, of the measured one-step values."""

    def value(run: str) -> float:
        rows = read_json(folder / "metrics" / f"{run}.json")["rows"]
        named = [r for r in rows if (r["metric"], r["reference"], r["sampling_steps"]) == (metric, "data", 1)]
        return named[0]["value"]

    ratios = [np.log(value(ours) / value(other)) for ours, other in runs]
    return f"{np.std(ratios, ddof=1):.3f}" if len(ratios) > 1 else "–"


if __name__ == "__main__":
    main()
