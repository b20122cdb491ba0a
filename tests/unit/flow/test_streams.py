"""Random streams: a value belongs to its number, however it is asked for."""

import numpy as np
import pytest
from consistency.flow.noise import normal_array
from consistency.flow.streams import generator, generators


def values(random):
    return [random.integers(1797), random.random(), *random.standard_normal(3, dtype=np.float32)]


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**40, 2**130 + 1])
@pytest.mark.parametrize("index", [(), (3,), (0, 5), (2**33,)])
def test_many_streams_are_the_single_ones(seed, index):
    numbers = [0, 1, 255, 2**16, 2**32 - 1]
    many = [values(random) for random in generators(seed, "draw", *index, numbers=numbers)]
    assert many == [values(generator(seed, "draw", *index, number)) for number in numbers]


def test_values_do_not_depend_on_the_other_numbers():
    whole = normal_array(1, "noise", range(100), (2, 3), 4)
    assert np.array_equal(normal_array(1, "noise", [70, 3], (2, 3), 4), whole[[70, 3]])
    assert len(np.unique(whole)) == whole.size


def test_a_number_that_is_no_word_is_refused():
    with pytest.raises(OverflowError):
        list(generators(0, "draw", numbers=[2**32]))
