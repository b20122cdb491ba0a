"""The record of what an output was made from, and what it says of outputs that the plan does not ask for."""

import json
import os

import pytest
from consistency.errors import StorageError
from consistency.files import records

SETTINGS = {"training": {"steps": 10, "rate": 0.1}, "name": None}


def make(output, settings=SETTINGS, inputs=(), rule="train", others=()):
    """A job: its outputs, with a record."""
    with records.recorded([output, *others], rule, settings, inputs):
        for path in (output, *others):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("made")


def why(output, settings=SETTINGS, inputs=(), rule="train", names=None, tracked=True, others=()):
    """What the plan says of the outputs."""
    names = set(settings) if names is None else names
    outputs = [str(path) for path in (output, *others)]
    return records.why_stale(
        outputs, rule, lambda: settings, names, lambda: list(map(str, inputs)), tracked=lambda path: tracked
    )


def test_what_was_made_as_planned_stays(tmp_path):
    first, second = tmp_path / "a/data.bin", tmp_path / "b/model"
    make(first)
    make(second, inputs=[first])
    for tracked in (True, False):
        assert why(first, tracked=tracked) is None
        assert why(second, inputs=[first], tracked=tracked) is None


def test_a_job_that_does_not_end_leaves_a_mark(tmp_path):
    output = tmp_path / "out"
    make(output)
    with pytest.raises(RuntimeError), records.recorded([output], "train", SETTINGS, []):
        raise RuntimeError
    assert why(output) == "its job began and did not end"
    output.unlink()
    assert why(output) == "its job began and did not end", "also where the output is gone"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": {"steps": 20, "rate": 0.1}, "name": None}, "training.steps was 10, is 20"),
        ({"training": {"steps": 10, "rate": 0.1}, "name": "x"}, 'name was null, is "x"'),
        ({"training": {"steps": 10, "rate": 0.1}, "name": None, "more": 1}, "it was made without more"),
        ({"training": {"steps": 10, "rate": 0.1}}, "it was made with name, which its rule no longer has"),
    ],
)
def test_another_setting_is_named(tmp_path, settings, message):
    make(tmp_path / "out")
    assert why(tmp_path / "out", settings) == message


def test_values_that_change_places_are_seen(tmp_path):
    """Snakemake compares params as a set of values, without their names."""
    make(tmp_path / "out", {"count": 1, "size": 2})
    assert why(tmp_path / "out", {"count": 2, "size": 1}) == "count was 1, is 2"


def test_lists_are_compared_by_entry(tmp_path):
    make(tmp_path / "out", {"runs": [{"seed": 0}, {"seed": 1}]})
    assert why(tmp_path / "out", {"runs": [{"seed": 0}, {"seed": 2}]}) == "runs.1.seed was 1, is 2"
    assert why(tmp_path / "out", {"runs": [{"seed": 0}]}) == "runs had 2 entries, has 1"


def test_a_setting_that_depends_on_inputs_is_not_compared(tmp_path):
    make(tmp_path / "out", {"steps": 1, "derived": "x"})
    assert why(tmp_path / "out", {"steps": 1}, names={"steps", "derived"}) is None


def test_tuples_and_paths_are_what_json_makes_of_them(tmp_path):
    make(tmp_path / "out", {"shape": (1, 2), "path": tmp_path})
    assert why(tmp_path / "out", {"shape": [1, 2], "path": str(tmp_path)}) is None


def test_an_input_that_was_made_anew_with_other_settings(tmp_path):
    data, model, sample = (tmp_path / name for name in ("data", "model", "sample"))
    make(data)
    make(model, inputs=[data])
    make(sample, inputs=[model])
    make(data, SETTINGS | {"name": "other"})
    assert why(sample, inputs=[model]) is None, "its own input is as it was"
    assert why(model, inputs=[data]) == f"it was made from another {data}"
    make(model, inputs=[data])
    assert why(sample, inputs=[model]) == f"it was made from another {model}"
    make(data)
    make(model, inputs=[data])
    assert why(sample, inputs=[model]) is None, "changed back"


def test_an_input_that_is_gone(tmp_path):
    data, model = tmp_path / "data", tmp_path / "model"
    make(data)
    make(model, inputs=[data])
    data.unlink()
    assert why(model, inputs=[data]) is None, "removed by hand: its record still says what it was"
    records.record_of(data).unlink()
    assert why(model, inputs=[data], tracked=False) == f"it was made from another {data}"


@pytest.mark.parametrize("size", [10, records.HASHED + 1])
def test_files_without_a_record_are_told_apart(tmp_path, size):
    own, output = tmp_path / "own.bin", tmp_path / "out"
    own.write_bytes(b"a" * size)
    make(output, inputs=[own])
    assert why(output, inputs=[own]) is None
    stat = own.stat()
    own.write_bytes(b"b" * size)
    if size > records.HASHED:  # told by size and time
        os.utime(own, ns=(stat.st_atime_ns, stat.st_mtime_ns - 10**9))
    else:  # by content
        os.utime(own, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert why(output, inputs=[own]) == f"it was made from another {own}"


def test_other_inputs_are_seen_where_snakemake_has_no_note(tmp_path):
    one, two, table = (tmp_path / name for name in ("one", "two", "table"))
    make(one)
    make(two)
    make(table, inputs=[one, two])
    assert why(table, inputs=[one], tracked=False) == "it was made from other inputs"
    assert why(table, inputs=[one], tracked=True) is None, "Snakemake's own trigger"


def test_outputs_without_a_record(tmp_path):
    output = tmp_path / "out"
    assert why(output, tracked=False) is None, "there is nothing"
    output.write_text("from somewhere")
    assert why(output, tracked=False) == "nothing says what it was made from"
    assert why(output, tracked=True) is None, "Snakemake knows, as of outputs taken from its cache"


def test_several_outputs_have_one_record(tmp_path):
    first, second, use = tmp_path / "figures/a.pdf", tmp_path / "stats/a.jsonl", tmp_path / "use"
    make(first, others=[second])
    make(use, inputs=[second])
    assert records.read(second) == records.read(first)
    assert why(first, others=[second]) is None
    make(first, SETTINGS | {"name": "x"}, others=[second])
    assert why(use, inputs=[second]) == f"it was made from another {second}"


@pytest.mark.parametrize("damage", [b"", b"{", b'{"id": "x", "sha256": "0"}', b"[]"])
def test_a_damaged_record_is_one_of_a_job_that_did_not_end(tmp_path, damage):
    make(tmp_path / "out")
    records.record_of(tmp_path / "out").write_bytes(damage)
    assert why(tmp_path / "out") == "its job began and did not end"


def test_a_link_into_a_cache_has_no_record(tmp_path):
    output = tmp_path / "out"
    make(output)
    output.rename(tmp_path / "cached")
    output.symlink_to(tmp_path / "cached")
    assert records.read(output) is None
    assert why(output, {"other": 1}) is None, "Snakemake's note decides"


def test_results_may_be_moved(tmp_path):
    make(tmp_path / "results/data")
    make(tmp_path / "results/digits/model", inputs=[tmp_path / "results/data"])
    (tmp_path / "results").rename(tmp_path / "elsewhere")
    data, model = tmp_path / "elsewhere/data", tmp_path / "elsewhere/digits/model"
    assert why(model, inputs=[data], tracked=False) is None
    make(data, SETTINGS | {"name": "x"})
    assert why(model, inputs=[data]) == f"it was made from another {data}"


def test_a_record_that_cannot_be_written_is_none(tmp_path, small_disk):
    from stages import fill

    output = small_disk / "out"
    make(output)
    fill(small_disk)
    with pytest.raises(StorageError, match="disk full"), records.recorded([output], "train", SETTINGS, []):
        pytest.fail("the body must not run")
    assert not records.record_of(output).exists()


def test_the_record_is_readable(tmp_path):
    make(tmp_path / "out", inputs=[])
    record = json.loads(records.record_of(tmp_path / "out").read_text())
    assert (record["rule"], record["settings"], record["inputs"]) == ("train", SETTINGS, {})
