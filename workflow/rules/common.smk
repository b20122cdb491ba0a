# Configuration, and the look-ups that rules use. Settings reach a job through its params alone, key
# by key, so that a change reruns the jobs that use the key and no others.
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))

from snakemake.exceptions import WorkflowError

from consistency import config as settings
from consistency.errors import ConsistencyError
from consistency.settings import condition
from consistency.storage import check_writable

try:
    CONFIG, EXPERIMENTS = settings.load(config)
    check_writable(CONFIG.results)
    RUNS = {name: {run.run: run for run in settings.expand(name, e)} for name, e in EXPERIMENTS.items()}
except ConsistencyError as error:
    raise WorkflowError(f"configuration: {error}") from None

RESULTS = CONFIG.results
FIGURES = ["tradeoff", "samples", "start-times", "sampling-steps", "training"]


def preset(wildcards):
    """The experiment of a job."""
    return EXPERIMENTS[wildcards.experiment]


def with_teacher(source):
    """A pattern for the experiments whose teacher comes from that source (none: matches nothing)."""
    return pattern(name for name, e in EXPERIMENTS.items() if e.teacher.source == source)


def run_of(wildcards):
    """The row of the table of runs."""
    return RUNS[wildcards.experiment][wildcards.run]


def dump(value):
    """A part of the configuration as plain data."""
    return value.model_dump()


def conditions_of(experiment):
    """Teacher conditions (solver, N, w) of an experiment, by id."""
    runs = RUNS[experiment].values()
    return {run.condition: {"solver": run.solver, "n_steps": run.n_steps, "guidance": run.guidance} for run in runs}


def condition_of(wildcards):
    """Solver, N and w of a job on one teacher condition."""
    return conditions_of(wildcards.experiment)[wildcards.condition]


def row_of(run):
    """The columns of metrics.csv that name a run."""
    return {key: getattr(run, key) for key in ("run", "method", "solver", "n_steps", "guidance", "seed")}


def pattern(names):
    """A wildcard pattern that matches these names and no others (none: matches nothing)."""
    return "|".join(re.escape(name) for name in sorted(names)) or "(?!)"


def sources_of(experiment):
    """Everything that metrics are measured on: the data, the teacher's conditions, the runs."""
    teachers = [f"teacher-{name}" for name in conditions_of(experiment)]
    return ["data", *teachers, *RUNS[experiment]]


def paper_outputs(wildcards):
    """Metrics, claims, tables and figures of every experiment."""
    outputs = [f"{RESULTS}/metrics.csv", f"{RESULTS}/claims.csv"]
    outputs += [f"{RESULTS}/tables/claims.{kind}" for kind in ("md", "tex", "html")]
    for experiment in EXPERIMENTS:
        outputs += [f"{RESULTS}/tables/{experiment}-main.{kind}" for kind in ("csv", "md", "tex", "html")]
        outputs += [f"{RESULTS}/figures/{experiment}-{name}.{kind}" for name in FIGURES for kind in ("pdf", "png")]
    return outputs


def targets_of(wildcards):
    """The manifest and the shards that a run learns from."""
    run, experiment = run_of(wildcards), wildcards.experiment
    folder = f"{RESULTS}/{experiment}/targets/{run.targets}-{run.condition}"
    shards = range(preset(wildcards).targets.shards)
    return {
        "manifest": f"{folder}/manifest.json",
        "shards": [f"{folder}/shard-{shard}.safetensors" for shard in shards],
    }


def group_rows(experiment):
    """Run, method, seed and condition of every run: what claims and figures group by."""
    columns = ("run", "method", "seed", "group", "solver", "n_steps", "guidance", "targets", "parameters")
    return [{key: getattr(run, key) for key in columns} for run in RUNS[experiment].values()]


def pictured(experiment):
    """The runs shown in the sample grid: the first seed of each method, under the first condition
    of each guidance scale."""
    chosen = {}
    for run in RUNS[experiment].values():
        chosen.setdefault((run.guidance, run.method), run)
    conditions = {run.guidance: run.group for run in reversed(chosen.values())}
    return [run for run in chosen.values() if conditions[run.guidance] == run.group]
