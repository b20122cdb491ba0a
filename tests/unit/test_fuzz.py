"""The short version of the fuzz of `make soak`."""

import fuzz
import pytest


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # sums of junk
def test_nothing_but_the_documented_errors():
    found = fuzz.run(9_000, 1)["readers"]
    assert len(found) == 18
    for name, (inputs, refused, read) in found.items():
        assert inputs == refused + read == 500
        least = 0 if name == "texts in outputs" else 120  # of texts nothing is refused
        assert refused >= least, f"{name}: {refused} of 500 refused, at least {least} expected"


def test_no_false_alarm(tmp_path):
    """What is not mutated is read: the fuzz could not fail otherwise."""
    unchanged = fuzz.mutate
    try:
        fuzz.mutate = lambda content, rng: content
        found = fuzz.run(180)["readers"]
    finally:
        fuzz.mutate = unchanged
    others = {name for name in found if name == "manifest of other values" or name.endswith("that declare more")}
    assert {name: refused for name, (_, refused, _) in found.items() if refused and name not in others} == {}
