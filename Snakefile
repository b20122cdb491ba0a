# Consistency models against direct ODE regression, as one cached DAG.
#
#   snakemake --cores all                                     everything that config.yaml names
#   snakemake --cores all --config experiments=digits-full    another experiment
#   snakemake --cores 1 results/figures/digits-tradeoff.pdf   one figure
#
from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


if WARM:

    include: "workflow/warm/warm.smk"


wildcard_constraints:
    experiment=pattern(PLANS),
    condition=pattern(name for planned in PLANS.values() for name in planned.conditions),
    replicate=pattern(end for planned in PLANS.values() for end in planned.replicates),
    run=pattern(run for planned in PLANS.values() for run in planned.runs),
    mode="paper|trajectory",
    shard=r"\d+",


localrules:
    all,
    paper,


# Before any job: a sign of life for `make resume`, and for other checkouts with the same results; whether the files that
# are needed are here, or can be had; the process that jobs on this machine start from.
onstart:
    LIVING.append(hold(".snakemake/running", share=True))
    LIVING.append(alone_in(JOB_RESULTS))
    missing = [
        f"{name}: {line}" for name, e in EXPERIMENTS.items() for line in preflight.problems(e, Path(RESULTS) / name)
    ]
    if missing:
        raise WorkflowError("\n".join(missing))
    if WARM:
        start_jobs_warm()


rule all:
    input:
        paper_outputs,
        f"{RESULTS}/report.html",


rule paper:
    input:
        paper_outputs,


include: "workflow/rules/teacher.smk"
include: "workflow/rules/targets.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/paper.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/records.smk"
