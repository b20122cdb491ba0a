"""Random streams: a value belongs to its number, however it is asked for."""

import numpy as np
import pytest
from consistency.flow.noise import normal_array
from consistency.flow.streams import generator, generators


def values(random):
    return [random.integers(1797), random.random(), *random.standard_normal(3, dtype=np.float32)]


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**53 - 1, 2**64 - 1])
@pytest.mark.parametrize("index", [(), (3,), (0, 5), (2**33,)])
def test_many_streams_are_the_single_ones(seed, index):
    numbers = [0, 1, 255, 2**16, 2**32, 2**64 - 1]
    many = [values(random) for random in generators(seed, "draw", *index, numbers=numbers)]
    assert many == [values(generator(seed, "draw", *index, number)) for number in numbers]


def test_values_do_not_depend_on_the_other_numbers():
    whole = normal_array(1, "noise", range(100), (2, 3), 4)
    assert np.array_equal(normal_array(1, "noise", [70, 3], (2, 3), 4), whole[[70, 3]])
    assert len(np.unique(whole)) == whole.size


def test_streams_differ_in_seed_purpose_and_index():
    ways = [
        (seed, purpose, *index)
        for seed in (0, 1, 2**53 - 1)
        for purpose in ("draw", "noise")
        for index in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0))
    ]
    firsts = {way: generator(*way).integers(2**63, size=4).tolist() for way in ways}
    seen = {number: way for way, numbers in firsts.items() for number in numbers}
    assert len(seen) == 4 * len(ways), "two streams share a number"


def test_streams_of_neighbours_are_uncorrelated():
    rows = normal_array(3, "noise", range(200), (5000,))
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert abs(correlation).max() < 6 / 5000**0.5, f"largest correlation {abs(correlation).max():.3f}"


def test_the_bits_are_fixed():
    """Another rule for keys changes every result, and has to be told in the changelog."""
    assert generator(5, "draw", 2, 9).integers(2**63, size=2).tolist() == [2352894751231603234, 6197943898192783503]


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_out_of_range_is_refused(number):
    for call in (
        lambda: list(generators(0, "draw", numbers=[number])),
        lambda: list(generators(0, "draw", number, numbers=[0])),
        lambda: generator(0, "draw", number),
        lambda: generator(number, "draw"),
    ):
        with pytest.raises(OverflowError):
            call()
    with pytest.raises(OverflowError):
        list(generators(0, "draw", numbers=np.array([-1])))
