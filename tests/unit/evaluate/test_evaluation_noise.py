"""The bootstrap of benchmarks/evaluation_noise.py."""

import numpy as np
import pytest
from consistency.evaluate.distances import FeatureSet, frechet_distance
from helpers import ROOT


def test_the_bootstraps_deviation_is_that_of_other_samples(monkeypatch):
    """Against samples drawn anew, and by the root of their number."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from evaluation_noise import deviations

    rng = np.random.default_rng(0)
    reference = FeatureSet(rng.standard_normal((2000, 2)))

    def pair(count):
        shared = rng.standard_normal((count, 2))
        return shared + [2, 0], 1.5 * shared + [0, 2]

    found = deviations(*pair(400), reference, None, [100, 400], draws=60)
    anew = [np.log(np.divide(*(frechet_distance(FeatureSet(x), reference) for x in pair(400)))) for _ in range(60)]
    assert found["frechet_distance", 400] == pytest.approx(np.std(anew, ddof=1), rel=0.35)
    assert found["frechet_distance", 100] == pytest.approx(2 * found["frechet_distance", 400], rel=0.35)
