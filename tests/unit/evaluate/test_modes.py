"""Measures of the modes: what moments are blind to, they see; and the yardsticks of the data itself."""

import numpy as np
import pytest
from consistency import config
from consistency.data import mixtures
from consistency.evaluate.distances import FeatureSet, frechet_distance
from consistency.evaluate.modes import Modes, mode_distance, mode_share_error, stratified_wasserstein
from consistency.evaluate.yardstick import halves
from consistency.flow.transport import wasserstein

COUNT = 512


def parameters_of(preset):
    data = config.load_experiment(preset).data.model_dump()
    return mixtures.parameters(data["dimension"], data["components"])


def drawn(parameters, seed, count=COUNT):
    return mixtures.draw(**parameters, count=count, seed=seed)


@pytest.fixture(params=["gaussians-modes", "gaussians-ring"])
def samples(request):
    """Exact draws; a blob with their moments; as many draws of half of the modes."""
    parameters = parameters_of(request.param)
    exact = drawn(parameters, 100)
    blob = np.random.default_rng(0).multivariate_normal(exact.mean(0), np.cov(exact.T), COUNT)
    modes = Modes(**parameters)
    many = drawn(parameters, 101, 4 * COUNT)
    half = many[modes.posterior(many).argmax(1) < len(modes.weights) // 2][:COUNT]
    return modes, exact, blob, half


def test_a_blob_and_missing_modes_are_worse_than_exact_draws(samples):
    modes, exact, blob, half = samples
    measured = [modes.measures(x) for x in (exact, blob, half)]
    distance, near, share = (
        [m[name] for m in measured] for name in ("stratified_wasserstein", "mode_distance", "mode_share_error")
    )
    assert distance[1] > 8 * distance[0]
    assert distance[2] > 8 * distance[0]
    assert near[0] == pytest.approx(np.sqrt(np.pi / 2), rel=0.1)  # mean norm of a standard normal in the plane
    assert near[1] > 3 * near[0]
    assert near[2] == pytest.approx(near[0], rel=0.1)
    assert share[0] < 0.1
    assert share[2] == pytest.approx(0.5, abs=0.01)  # both presets' first half has half of the weight


def test_other_distances_see_moments_and_counts_alone():
    """Why they do not decide on narrow modes."""
    parameters = parameters_of("gaussians-modes")
    modes, reference = Modes(**parameters), FeatureSet(drawn(parameters, 0, 4096))
    means, moments = reference.features.mean(0), np.cov(reference.features.T)
    blobs = [np.random.default_rng(seed).multivariate_normal(means, moments, COUNT) for seed in range(20)]
    exact = [drawn(parameters, 100 + seed) for seed in range(20)]
    of_blobs, of_exact = (np.mean([frechet_distance(FeatureSet(x), reference) for x in xs]) for xs in (blobs, exact))
    assert of_blobs < 3 * of_exact
    lower = exact[0][:, 1] < 0
    uneven = np.concatenate([exact[0][lower][:160], np.resize(exact[0][~lower], (352, 2))])
    assert wasserstein(uneven, exact[1]) > wasserstein(blobs[0], exact[1])
    assert stratified_wasserstein(modes, uneven) < 0.05 * stratified_wasserstein(modes, blobs[0])


def test_by_hand_on_a_line():
    """Modes of deviation 1 and 2, far apart: an empty cell costs the distance to the nearest sample elsewhere."""
    modes = Modes(np.array([0.75, 0.25]), np.array([[0.0], [100.0]]), np.array([[[1.0]], [[4.0]]]))
    assert modes.distances(np.array([[3.0], [96.0]])) == pytest.approx(np.array([[3, 48.5], [96, 2]]))
    assert mode_distance(modes, np.array([[3.0], [96.0]])) == pytest.approx(2.5)
    assert mode_share_error(modes, np.array([[0.0], [100.0]])) == pytest.approx(0.25)
    cells = modes.reference(4 * 3)
    assert np.bincount((cells[:, 0] > 50).astype(int)).tolist() == [9, 3]
    near = np.sort(cells[:3, 0])
    alone = stratified_wasserstein(
        modes, cells[:3]
    )  # exactly the reference's first draws, and nothing on the other mode
    assert alone == pytest.approx(np.sqrt(0.25 * np.square(cells[9:, 0] - near[-1]).mean()))
    third = stratified_wasserstein(modes, np.array([near[:1], near[1:2], [100.0]]))
    inside = 0.75 * ((np.sort(cells[:2, 0]) - near[:2]) ** 2).mean() + 0.25 * (cells[9, 0] - 100) ** 2
    assert third == pytest.approx(np.sqrt(inside))  # more than half of each share: nothing is missing


def test_posterior_is_the_mixtures_own():
    """Against the densities of SciPy, where modes overlap; its mean over draws is the weight."""
    from scipy.stats import multivariate_normal

    parameters = parameters_of("gaussians-skewed")
    weights, means, covariances = parameters.values()
    x = drawn(parameters, 5, 4000)
    densities = np.stack([w * multivariate_normal(m, c).pdf(x) for w, m, c in zip(weights, means, covariances)], 1)
    modes = Modes(**parameters)
    assert modes.posterior(x) == pytest.approx(densities / densities.sum(1, keepdims=True))
    assert mode_share_error(modes, x) < 0.02


def test_halves_are_stratified_and_random():
    labels = np.random.default_rng(0).integers(0, 10, 1001)
    splits = [halves(labels, split) for split in range(3)]
    for first, second in splits:
        assert len(first) == len(second) == 500
        assert len(set(first) | set(second)) == 1000
        assert np.abs(np.bincount(labels[first]) - np.bincount(labels[second])).max() <= 2
    assert len({tuple(np.sort(first)) for first, _ in splits}) == 3
    assert np.array_equal(halves(labels, 1)[0], splits[1][0])
    single = halves(np.zeros(1000), 0)[0]  # of one label: any half
    assert abs((single < 500).sum() - 250) < 60
