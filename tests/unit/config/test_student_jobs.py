"""What a student's jobs are told: the settings that its result depends on, and no others."""

import json

import pytest
from consistency import config
from consistency.config import jobs
from consistency.config.jobs import SamplingJob, StudentJob
from consistency.errors import ConsistencyError
from helpers import BOTH
from pydantic import ValidationError


def runs_of(preset, changes=None):
    """The experiment, and its runs by id."""
    experiment = config.load_experiment(preset, changes or {})
    return experiment, {run.id: run for run in config.expand(preset, experiment)}


def first(runs, method):
    return next(run for run in runs.values() if run.method == method)


def test_a_student_of_targets():
    experiment, runs = runs_of("digits")
    run = first(runs, "cm")
    job = jobs.training_job(experiment, run)
    expected = {
        "objective": experiment.registry.get("objective", "consistency_distillation").call({}),
        "draws": "targets",
        "flow": "vp",
        "flow_options": experiment.schedule.model_dump(),
        "parameterisation": "boundary",
        "timestep_offset": experiment.teacher.timestep_offset,
        "parameters": "full",
    }
    assert {key: job.model_dump()[key] for key in expected} == expected
    assert job.training == experiment.student.training
    assert job.loss == experiment.student.loss
    assert job.run.model_dump() == {key: getattr(run, {"run": "id"}.get(key, key)) for key in job.run.model_dump()}
    of_pairs = {"coupling", "velocity", "teacher_schedule", "times", "network", "budgets", "lora_rank"}
    defaults = {key: StudentJob.model_fields[key].get_default(call_default_factory=True) for key in of_pairs}
    assert {key: getattr(job, key) for key in of_pairs} == defaults


def test_a_student_of_pairs():
    experiment, runs = runs_of("gaussians-modes")
    job, section = jobs.training_job(experiment, first(runs, "ct-gc")), experiment.consistency_training
    assert (job.draws, job.flow, job.parameterisation, job.velocity) == ("pairs", "ve", "edm", "pair")
    assert job.flow_options == section.edm.model_dump()
    assert (job.coupling.kind, job.coupling.share) == ("generator_induced", 0.5)
    assert job.times == section.curriculum
    assert job.network == experiment.network.model_dump()
    assert (job.training, job.loss, job.budgets) == (section.training, section.loss, section.budgets)
    assert (job.parameters, job.lora_rank, job.teacher_schedule) == ("full", None, None)
    assert (job.run.solver, job.run.n_steps, job.run.guidance) == (None, None, None)


def test_a_students_own_adapters_dropout_and_times():
    lora = {"runs": [{"n_steps": 5, "parameters": ["full", "lora"]}], "student": {"lora_rank": 7}}
    experiment, runs = runs_of("digits", lora)
    ranks = {run.parameters: jobs.training_job(experiment, run).lora_rank for run in runs.values()}
    assert ranks == {"full": None, "lora": 7}
    times = {"kind": "logit_normal", "mean": 0.1, "deviation": 2.0, "distinct": 0.5}
    method = {"objective": "consistency_training", "flow": "linear", "times": times}
    changes = {"methods": {"mine": method}, "runs": [{"method": ["mine"]}], "claims": []}
    experiment, runs = runs_of("gaussians-modes", changes | {"analysis": {"coupling_methods": []}})
    job = jobs.training_job(experiment, first(runs, "mine"))
    assert (job.flow, job.flow_options, job.parameterisation) == ("linear", {}, "average_velocity")
    assert job.times.model_dump() == times
    assert StudentJob(**job.model_dump()).times == job.times  # as a job gets it
    assert jobs.sampling_job(experiment, first(runs, "mine")).sampler["name"] == "flow_map"


def test_the_teachers_schedule_belongs_to_those_that_follow_a_network():
    """A teacher in closed form has none that a student of pairs asks."""
    follow = {"objective": "consistency_training", "velocity": "teacher"}
    changes = {"methods": {"cd": follow}, "runs": [{"method": ["cd"]}], "claims": []}
    changes |= {"consistency_training": {"edm": {"sigma_max": 10.0}}, "teacher": {"timestep_offset": 0}}
    experiment, runs = runs_of("digits", changes)
    job = jobs.training_job(experiment, first(runs, "cd"))
    assert job.teacher_schedule == experiment.schedule.model_dump()
    assert job.timestep_offset == 0
    exact, runs = runs_of("gaussians-modes")
    assert jobs.training_job(exact, first(runs, "cd")).teacher_schedule is None


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"student": {"training": {"learning_rate": 1e-5}}}, "targets"),
        ({"student": {"loss": {"kind": "pseudo_huber"}}}, "targets"),
        ({"schedule": {"beta_end": 0.02}}, "targets"),
        ({"consistency_training": {"training": {"learning_rate": 1e-5}}}, "pairs"),
        ({"consistency_training": {"curriculum": {"s0": 20}}}, "pairs"),
        ({"consistency_training": {"edm": {"sigma_data": 0.7}}}, "pairs"),
        ({"network": {"width": 48}}, "pairs"),
        ({"evaluation": {"count": 99, "seed": 5}}, None),
        ({"claims": []}, None),
    ],
)
def test_a_setting_changes_the_jobs_of_those_that_it_concerns(change, kind):
    (before, runs), (after, others) = runs_of("digits", BOTH), runs_of("digits", BOTH | change)
    changed = {run.draws for name, run in runs.items() if training(before, run) != training(after, others[name])}
    assert changed == ({kind} if kind else set())


def training(experiment, run):
    return jobs.training_job(experiment, run).model_dump()


def test_how_a_student_is_sampled():
    changes = {
        "evaluation": {"sampling_steps": [1, 2, 4, 8], "count": 50, "seed": 9},
        "runs": [{"n_steps": 5}],
        "replicates": "students",
    }
    method = {"objective": "direct", "sampler": "ddim", "least_steps": 2}
    experiment, runs = runs_of("digits", changes | {"methods": {"mine": method}})
    job = jobs.sampling_job(experiment, first(runs, "mine"))
    assert (job.sampler["name"], job.sampling_steps, job.n_steps) == ("ddim", [2, 4], 5)  # from its least to its N
    assert (job.count, job.seed, job.budgets) == (50, 9, [])
    plain = jobs.sampling_job(experiment, first(runs, "cm"))
    assert (plain.sampler["name"], plain.sampling_steps) == ("renoise", [1, 2, 4])
    exact, runs = runs_of("gaussians-modes")
    pairs = jobs.sampling_job(exact, first(runs, "ct-ic"))
    assert (pairs.budgets, pairs.n_steps) == (exact.consistency_training.budgets, None)
    assert pairs.sampling_steps == exact.evaluation.sampling_steps


@pytest.mark.parametrize("preset", ["digits", "gaussians-modes", "cifar10", "sdxl"])
def test_jobs_travel_as_json(preset):
    """As a rule's params do; what comes back is the same job."""
    experiment, runs = runs_of(preset)
    for run in runs.values():
        for make, kind in ((jobs.training_job, StudentJob), (jobs.sampling_job, SamplingJob)):
            job = make(experiment, run)
            again = kind(**json.loads(json.dumps(job.model_dump(mode="json"))))
            assert again.model_dump() == job.model_dump()


def test_a_job_refuses_what_it_does_not_know():
    experiment, runs = runs_of("digits")
    settings = jobs.training_job(experiment, first(runs, "cm")).model_dump()
    with pytest.raises((ValidationError, ConsistencyError), match="learning_rat"):
        StudentJob(**settings | {"training": {"learning_rat": 1e-3}})
