"""The same on one machine, without SLURM: what a killed snakemake leaves running never writes beside its successor."""

from __future__ import annotations

import sys

import pytest
from cluster.conftest import succeeded

pytestmark = [pytest.mark.long, pytest.mark.needs("linux", "make")]
LOCAL = [sys.executable, "-m", "snakemake", "--cores", "2"]


def test_a_job_that_outlived_its_snakemake_is_waited_for(student, undisturbed):
    one = student("cm-ddim-n5-w1-s0")
    process = one.start([*LOCAL, one.target])
    trainer = one.stop(process)
    process.kill()
    process.wait()
    one.snakemake("--unlock")
    again = one.start([*LOCAL, one.target])
    line = f"waiting for process {trainer.pid} on "
    one.waits_for(lambda: line in one.output.read_text(), "the second job's word that it waits")
    assert not (one.folder / one.target).exists()
    trainer.resume()
    succeeded(again, one)
    assert one.model() == undisturbed(one.run)


def test_resume_ends_what_was_left_and_continues(student, undisturbed, watch):
    one = student("cm-ddim-n5-w1-s0")
    process = one.start([*LOCAL, one.target])
    trainer = one.stop(process)
    process.kill()
    process.wait()
    counted = watch(one)
    said = succeeded(one.resume(""), one)
    assert f"resume: ends process {trainer.pid}: " in said
    assert counted.most == 1
    assert "resumed at step" in one.log.read_text()
    assert one.model() == undisturbed(one.run)
