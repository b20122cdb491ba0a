"""The short version of the fuzz of `make soak`."""

import fuzz
import pytest


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # sums of junk
def test_nothing_but_the_documented_errors():
    found = fuzz.run(7_500, 1)["readers"]
    assert len(found) == 15
    for name, (inputs, refused, read) in found.items():
        assert inputs == refused + read == 500
        assert refused > 120, f"{name}: {refused} of 500 refused, more than 120 expected"


def test_no_false_alarm(tmp_path):
    """What is not mutated is read: the fuzz could not fail otherwise."""
    unchanged = fuzz.mutate
    try:
        fuzz.mutate = lambda content, rng: content
        found = fuzz.run(150)["readers"]
    finally:
        fuzz.mutate = unchanged
    others = {name for name in found if name == "manifest of other values" or name.endswith("that declare more")}
    assert {name: refused for name, (_, refused, _) in found.items() if refused and name not in others} == {}
