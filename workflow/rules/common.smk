# The configuration, and what only Snakemake knows. What a job needs, its rule asks of the experiment's plan
# (consistency/plan/plan.py). Settings reach a job through its params alone, key by key, so that a change reruns the jobs that
# use the key and no others.
import gc
import os
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.sourcecache import HostingProviderFile, LocalSourceFile

# The folder workflow/. As a module from github(…) or gitlab(…), of whose clone Snakemake hands out single files, all
# of its files are asked for: they come to lie side by side in Snakemake's cache.
HERE = workflow.current_basedir
if isinstance(HERE, HostingProviderFile):
    COMMIT = HERE.hosted_repo.repo.commit(HERE.ref)
    for file in COMMIT.tree["workflow"].traverse(lambda item, depth: item.type == "blob"):
        workflow.source_path(f"../../{file.path}")
    WORKFLOW = Path(workflow.source_path("common.smk")).parents[1]
    os.environ.update(CONSISTENCY_COMMIT=COMMIT.hexsha)
elif isinstance(HERE, LocalSourceFile):
    WORKFLOW = Path(HERE.path).parent
else:
    raise WorkflowError(f"{HERE}: as a module the workflow is a folder, github(…) or gitlab(…)")
sys.path.insert(0, str(WORKFLOW))
sys.path.append(str(WORKFLOW / "scripts"))

import _results
import _surroundings
from _job import shared
from consistency import config as settings
from consistency import addresses, escape
from consistency.config import gates, strict
from consistency.errors import ConsistencyError
from consistency.files.locks import hold, hold_for
from consistency.files.storage import check_writable, explain
from consistency.plan import estimates, preflight
from consistency.plan.outputs import paper, pattern
from consistency.plan.plan import Plan, megabytes, row_of
from consistency.runtime import provenance
from consistency.runtime.progress import Board


@contextmanager
def one_line(where=""):
    """The library's errors as Snakemake's, without a trace."""
    try:
        yield
    except ConsistencyError as error:
        raise WorkflowError(f"{where}{error}") from None


def usable(path, name=""):
    """A path that Snakemake takes as it is written."""
    if sign := _surroundings.unusable(path):
        raise ConsistencyError(f"{name}{path}: {sign!r} in a path means something else to Snakemake; rename it")
    return path


_surroundings.prepare()
with one_line("configuration: "):
    if workflow.is_main_process:  # Snakemake's own reader takes the last of two equal keys
        for file in filter(os.path.exists, workflow.configfiles):
            strict.check(file)
    # Named on the command line, experiments may be others than those that config.yaml has overrides for.
    CONFIG, EXPERIMENTS = settings.load(
        config, chosen_elsewhere="experiments" in workflow.config_settings.overwrite_config
    )
    RESULTS = CONFIG.results
    # As jobs see it: as a module's, outputs are under its prefix, which params don't get by themselves.
    JOB_RESULTS = str(workflow.modifier.modify_path(RESULTS))
    usable(WORKFLOW, "this workflow's folder: ")
    check_writable(usable(JOB_RESULTS, "results: "))
    for name in EXPERIMENTS:
        if (Path(JOB_RESULTS) / name).is_dir():
            check_writable(Path(JOB_RESULTS) / name)
    # With the experiments that do not run, but train teachers of those that do.
    PLANS = {
        name: Plan(name, experiment, RESULTS, JOB_RESULTS)
        for name, experiment in (EXPERIMENTS | settings.lenders(CONFIG, EXPERIMENTS)).items()
    }

REGISTRY = next(iter(EXPERIMENTS.values())).registry  # one for all of them
gc.set_threshold(100_000, 50, 50)  # a DAG's objects stay; to look through all of them again and again takes long
LIVING = []  # what is held as long as this process lives
if CONFIG.tensorboard:
    Board.ask()  # not a param, which would train again
if workflow.is_main_process:
    for line in settings.warnings(CONFIG, EXPERIMENTS):
        logger.warning(f"configuration: {line}")
    if not workflow.output_settings.dryrun and workflow.modifier.is_main_snakefile():
        _results.remember(RESULTS)
if workflow.output_settings.dryrun:
    for name, planned in list(PLANS.items())[: len(EXPERIMENTS)]:
        logger.info(estimates.table(name, planned.experiment, list(planned.runs.values())))
GPUS = getattr(workflow.global_resources.get("gpu"), "value", None)
for name, experiment in EXPERIMENTS.items():
    os.environ.update(preflight.hidden(experiment))  # whole addresses, for this process's jobs
    if GPUS is not None and experiment.gpu > GPUS:  # such a job would get less and not know it
        raise WorkflowError(
            f"{name}: a job needs gpu={experiment.gpu}, but --resources allows gpu={GPUS} (as profiles/default does): "
            "allow more, or name a cluster's profile with --workflow-profile, which takes the default's place"
        )
# A user's text is for a param NAME_json, which a job reads by `decoded`: Snakemake writes the params of all that is in its
# report into a <script>, as they are.
as_json = escape.script
WARM = (WORKFLOW / "warm/warm.smk").exists()  # an add-on: a process that jobs on this machine are forked from

# Snakemake's between-workflow cache (--cache), where the other checkouts' results are: docs/reuse.md.
CACHED = workflow.workflow_settings.cache is not None
if CACHED:
    with one_line("--cache: "):
        provenance.check_shared()


def identity(script):
    """What a cached result depends on besides its rule's script, params and inputs: wildcards, the library's code and
    packages. A function of `input`, which Snakemake hashes into the cache's key but does not compare with the last
    run's."""

    def of(wildcards, input):
        if not CACHED:
            return None
        code = provenance.code_sha256(WORKFLOW / "scripts" / f"{script}.py")
        return [dict(wildcards.items()), code, provenance.versions()]

    return of


@cache
def state_of(path):
    """What tells the user's own files from those that were there before; None where there are none."""
    with one_line():
        return provenance.files_sha256(path) if path else None


def own_or_downloaded(wildcards, part):
    """The user's own files as inputs, for Snakemake's cache hashes files only, or the folder that is downloaded in their
    stead. A folder without files stays, so that the job names it."""
    planned = plan_of(wildcards)
    if not (own := planned.own[part]):
        return [f"{planned.folder}/downloads/{part}"]
    with one_line():
        files = [path for path in provenance.own_files(own) if path.is_file()]
        return [local(str(usable(path))) for path in files or [own]]


def weights_of(wildcards):
    """The weights that samples are measured with, as inputs: the extractors', and of latents the VAE's."""
    planned = plan_of(wildcards)
    return planned.weights + (own_or_downloaded(wildcards, "vae") if planned.in_latents else [])


def plan_of(wildcards):
    """The plan of a job's experiment."""
    return PLANS[wildcards.experiment]


def of_plan(look_up):
    """For a rule: what `look_up` takes from the plan of a job's experiment."""
    return lambda wildcards: look_up(PLANS[wildcards.experiment])


def preset(wildcards):
    """The settings of a job's experiment."""
    return PLANS[wildcards.experiment].experiment


def run_of(wildcards):
    """The row of the table of runs."""
    return PLANS[wildcards.experiment].runs[wildcards.run]


def experiments_where(condition):
    """A pattern for the experiments whose plan meets a condition."""
    return pattern(name for name, planned in PLANS.items() if condition(planned))


def paper_outputs(wildcards):
    """Metrics, claims, tables, figures and pages of every experiment."""
    return paper([PLANS[name] for name in EXPERIMENTS], RESULTS)


def code_of(kind, name):
    """The code of a function that a configuration names, as a param: edited, it runs again what uses it."""
    return REGISTRY.get(kind, name).code_sha256


def dump(value):
    """A part of the configuration as plain data."""
    return value.model_dump()


def gates_of(wildcards):
    """What has to be sound before claims of a job's experiment are decided."""
    return gates.asked(preset(wildcards))


def memory(wildcards):
    """Memory of a job that runs a network, in MB."""
    return preset(wildcards).mem_mb


def gpus(wildcards):
    """GPUs of a job that runs a network."""
    return preset(wildcards).gpu


def minutes(wildcards, attempt):
    """Time limit of a job that runs a network, on a cluster."""
    return preset(wildcards).runtime * attempt


def alone_in(results):
    """Keep a snakemake of another folder from the same results as long as this process lives."""
    try:
        return hold_for(Path(shared(results)) / ".running", os.curdir)
    except ConsistencyError as error:
        why = f"another snakemake is at work there ({error}); let it end, or name another folder"
    except OSError as error:
        why = explain(error, Path(error.filename))
    raise WorkflowError(f"results: {why}")
