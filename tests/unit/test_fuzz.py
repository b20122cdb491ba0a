"""The short version of the fuzz of `make soak`."""

import fuzz
import pytest


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # sums of junk
def test_nothing_but_the_documented_errors():
    found = fuzz.run(16_000, 1)["readers"]
    assert len(found) == 8
    for inputs, refused, read in found.values():
        assert inputs == refused + read == 2000
        assert refused > 600


def test_no_false_alarm(tmp_path):
    """What is not mutated is read: the fuzz could not fail otherwise."""
    unchanged = fuzz.mutate
    try:
        fuzz.mutate = lambda content, rng: content
        found = fuzz.run(80)["readers"]
    finally:
        fuzz.mutate = unchanged
    assert all(refused == 0 for name, (_, refused, _) in found.items() if name != "manifest of other values")
