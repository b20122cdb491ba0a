# Configuration, and the look-ups that rules use. Settings reach a job through its params alone, key
# by key, so that a change reruns the jobs that use the key and no others.
import gc
import os
import re
import sys
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
from consistency.config import strict
from consistency.config.settings import condition
from consistency.errors import ConsistencyError
from consistency.files.locks import hold, hold_for
from consistency.files.storage import check_writable, explain
from consistency.plan import estimates, preflight
from consistency.runtime import provenance
from consistency.runtime.progress import Board

_surroundings.prepare()
try:
    if workflow.is_main_process:  # Snakemake's own reader takes the last of two equal keys
        for file in filter(os.path.exists, workflow.configfiles):
            strict.check(file)
    # Named on the command line, experiments may be others than those that config.yaml has overrides for.
    CONFIG, EXPERIMENTS = settings.load(
        config, chosen_elsewhere="experiments" in workflow.config_settings.overwrite_config
    )
    # Seen from the working directory: as a module's, outputs are under its prefix, which params don't get by themselves.
    PLACE = str(workflow.modifier.modify_path(CONFIG.results))
    for name, place in (("this workflow's folder", WORKFLOW), ("results", PLACE)):
        if sign := _surroundings.unusable(place):
            raise ConsistencyError(f"{name}: {place}: {sign!r} in a path means something else to Snakemake; rename it")
    check_writable(PLACE)
    for name in EXPERIMENTS:
        if (Path(PLACE) / name).is_dir():
            check_writable(Path(PLACE) / name)
    RUNS = {name: {run.run: run for run in settings.expand(name, e)} for name, e in EXPERIMENTS.items()}
except ConsistencyError as error:
    raise WorkflowError(f"configuration: {error}") from None

gc.set_threshold(100_000, 50, 50)  # a DAG's objects stay; to look through all of them again and again takes long
for experiment in EXPERIMENTS.values():
    os.environ.update(preflight.hidden(experiment))  # whole addresses, for this process's jobs
RESULTS = CONFIG.results
LIVING = []  # what is held as long as this process lives
if CONFIG.tensorboard:
    Board.ask()  # not a param, which would train again
if workflow.is_main_process:
    for line in settings.warnings(CONFIG, EXPERIMENTS):
        logger.warning(f"configuration: {line}")
    if not workflow.output_settings.dryrun and workflow.modifier.is_main_snakefile():
        _results.remember(RESULTS)
if workflow.output_settings.dryrun:
    for name, experiment in EXPERIMENTS.items():
        logger.info(estimates.table(name, experiment, list(RUNS[name].values())))
GPUS = getattr(workflow.global_resources.get("gpu"), "value", None)
for name, experiment in EXPERIMENTS.items():
    if GPUS is not None and experiment.gpu > GPUS:  # such a job would get less and not know it
        raise WorkflowError(
            f"{name}: a job needs gpu={experiment.gpu}, but --resources allows gpu={GPUS} (as profiles/default does): "
            "allow more, or name a cluster's profile with --workflow-profile, which takes the default's place"
        )
FROM_TARGETS = {name: {run: row for run, row in runs.items() if not row.from_pairs} for name, runs in RUNS.items()}
FROM_PAIRS = {name: {run: row for run, row in runs.items() if row.from_pairs} for name, runs in RUNS.items()}
WARM = (WORKFLOW / "warm/warm.smk").exists()  # an add-on: a process that jobs on this machine are forked from
PAGE_SEEDS = 3  # most seeds of a method on the page of samples
CAPTIONS = [path.stem for path in sorted((WORKFLOW / "report").glob("*.rst"))]
PAPER = workflow.modifier.modify_rulename("paper")

# Snakemake's between-workflow cache (--cache), where the other checkouts' results are: docs/reuse.md.
CACHED = workflow.workflow_settings.cache is not None
if CACHED:
    try:
        provenance.check_shared()
    except ConsistencyError as error:
        raise WorkflowError(f"--cache: {error}") from None


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
def state_of(place):
    """What tells the user's own files from those that were there before; None where there is no such place."""
    try:
        return provenance.files_sha256(place) if place else None
    except ConsistencyError as error:
        raise WorkflowError(str(error)) from None


def data_files(wildcards):
    """The state of the user's data set, as a param: with other files it is prepared again."""
    data = preset(wildcards).data
    return state_of(getattr(data, "folder", None) or getattr(data, "source", None))


def teacher_files(wildcards):
    """The state of the user's teacher."""
    return state_of(preset(wildcards).teacher.path)


def files_in(folder):
    """The files of a user's folder, as inputs: Snakemake's cache hashes files only. A missing one stays, to be named."""
    try:
        files = [path for path in provenance.own_files(folder) if path.is_file()]
    except ConsistencyError as error:
        raise WorkflowError(str(error)) from None
    for path in files or [folder]:
        if sign := _surroundings.unusable(path):
            raise WorkflowError(f"{path}: {sign!r} in a path means something else to Snakemake; rename it")
    return [local(str(path)) for path in files or [folder]]


def preset(wildcards):
    """The experiment of a job."""
    return EXPERIMENTS[wildcards.experiment]


# Keys of a teacher that say how it is called, which is not how it is trained.
CALLED = {"timestep_offset", "precision", "compile", "hub", "subfolder"}


def with_teacher(*sources):
    """A pattern for the experiments whose teacher comes from one of these sources (none: matches nothing)."""
    return pattern(name for name, e in EXPERIMENTS.items() if e.teacher.source in sources)


def as_json(value):
    """A text of the user's for a param NAME_json, which a job reads by `decoded`. Snakemake writes the params of all that
    is in its report into a <script>, as they are."""
    return escape.script(value)


def run_of(wildcards):
    """The row of the table of runs."""
    return RUNS[wildcards.experiment][wildcards.run]


def dump(value):
    """A part of the configuration as plain data."""
    return value.model_dump()


@cache
def conditions_of(experiment):
    """Teacher conditions (solver, N, w) of an experiment, by id."""
    runs = FROM_TARGETS[experiment].values()
    return {run.condition: {"solver": run.solver, "n_steps": run.n_steps, "guidance": run.guidance} for run in runs}


def condition_of(wildcards):
    """Solver, N and w of a job on one teacher condition."""
    return conditions_of(wildcards.experiment)[wildcards.condition]


def row_of(run):
    """The columns of metrics.csv that name a run."""
    return {key: getattr(run, key) for key in ("run", "method", "solver", "n_steps", "guidance", "seed")}


def alone_in(results):
    """Keep a snakemake of another folder from the same results as long as this process lives."""
    try:
        return hold_for(Path(shared(results)) / ".running", os.curdir)
    except ConsistencyError as error:
        raise WorkflowError(
            f"results: another snakemake is at work there ({error}); let it end, or name another folder"
        )
    except OSError as error:
        raise WorkflowError(f"results: {explain(error, Path(error.filename))}")


def pattern(names):
    """A wildcard pattern that matches these names and no others (none: matches nothing)."""
    return _branches(sorted(set(names))) or "(?!)"


def _branches(names):
    """Of sorted names: what they begin with in common is tried once, or a file of a thousand runs takes long to match."""
    groups = {}
    for name in names:
        groups.setdefault(name[:1], []).append(name)
    parts = []
    for letter, group in groups.items():
        start = os.path.commonprefix(group)
        rest = [name[len(start) :] for name in group]
        parts.append(re.escape(start) + (f"(?:{_branches(rest)})" if letter and len(group) > 1 else ""))
    return "|".join(parts)


def sources_of(experiment):
    """Everything that metrics are measured on: the data, the teacher's conditions, the runs."""
    teachers = [f"teacher-{name}" for name in conditions_of(experiment)]
    couplings = [f"couplings-{run}" for run in analysed(experiment)]
    orders = ["orders"] * bool(EXPERIMENTS[experiment].analysis.order_steps)
    return ["data", *teachers, *RUNS[experiment], *couplings, *orders]


def figures_of(experiment):
    """The figures that an experiment has something to show in."""
    settings, names = EXPERIMENTS[experiment], []
    if FROM_TARGETS[experiment]:
        names += ["tradeoff", "training"]
        names += ["points"] if is_exact(experiment) else ["start-times", "sampling-steps", "samples"]
    if FROM_PAIRS[experiment]:
        names += ["convergence"]
    if len({shares_of(run)[1] for run in FROM_PAIRS[experiment].values() if shares_of(run)[0]}) > 1:
        names += ["share"]
    if analysed(experiment):
        names += ["transport", *(["discrepancy", "trajectories"] if is_exact(experiment) else [])]
    return names + ["orders"] * bool(settings.analysis.order_steps)


def is_exact(experiment):
    """Whether the teacher is known in closed form, and with it the ODE's true end."""
    return EXPERIMENTS[experiment].teacher.source == "analytic"


def shares_of(run):
    """Whether a run belongs to the comparison of μ (the student's average as generator), and its μ."""
    generated = run.coupling.kind == "generator_induced" and run.coupling.generator == "ema"
    plain = run.coupling.kind == "independent" and run.velocity == "pair"
    return generated or plain, run.coupling.share if generated else 0.0


def initial_of(wildcards):
    """The network that students of targets start from: the teacher, or where that is a formula, one trained like it."""
    return f"{RESULTS}/{wildcards.experiment}/{'initial' if is_exact(wildcards.experiment) else 'teacher'}"


def truth_of(wildcards):
    """The ODE's true end, where it is known."""
    return f"{RESULTS}/{wildcards.experiment}/truth.safetensors" if is_exact(wildcards.experiment) else []


def with_data(*kinds, but=False):
    """A pattern for the experiments whose data are of these kinds (with `but`: of others)."""
    return pattern(name for name, e in EXPERIMENTS.items() if (e.data.kind in kinds) != but)


def download_of(experiment, part):
    """Where a part is downloaded from, as the job needs it."""
    return preflight.weights(EXPERIMENTS[experiment])[part].model_dump(exclude={"gigabytes"})


def size_of(source):
    """Size of a download in MB, as a resource: a better estimate is no reason to download again. 0: not configured."""
    return round(1000 * (getattr(source, "gigabytes", None) or 0))


def extractors_of(wildcards, root=PLACE):
    """The extractors with the folders of their weights; a mixture's features are its coordinates."""
    settings, folder = preset(wildcards), f"{root}/{wildcards.experiment}"
    found = []
    for extractor in settings.extractors if settings.data.kind != "mixture" else []:
        places = {"classifier": f"{folder}/classifier", "efficientnet-lite0": None}
        options = {
            "kind": extractor.kind,
            "folder": places.get(extractor.kind, f"{folder}/downloads/{extractor.kind}"),
        }
        if getattr(extractor, "aesthetic", None):
            options["aesthetic"] = f"{folder}/downloads/aesthetic"
        found.append(options)
    return found


def weights_of(wildcards):
    """The folders of the extractors' weights, and of the VAE that decodes."""
    found = [options.get(key) for options in extractors_of(wildcards, RESULTS) for key in ("folder", "aesthetic")]
    return [folder for folder in found if folder] + (decoder_of(wildcards) if in_latents(wildcards) else [])


def measuring(wildcards):
    """How samples are measured."""
    return {"extractors": extractors_of(wildcards), "batch_size": preset(wildcards).evaluation.batch_size}


def in_latents(wildcards):
    """Whether samples are latents, of captioned images."""
    return preset(wildcards).data.kind == "captions"


def vae_of(wildcards):
    """The VAE's folder and how it runs, where samples are latents."""
    if not in_latents(wildcards):
        return None
    data = preset(wildcards).data
    folder = data.vae if isinstance(data.vae, str) else f"{PLACE}/{wildcards.experiment}/downloads/vae"
    return {"folder": folder, "batch_size": data.batch_size, "precision": data.precision}


def decoder_of(wildcards):
    """The VAE as inputs: the folder that is downloaded, or the files of the user's own."""
    vae = preset(wildcards).data.vae
    return files_in(vae) if isinstance(vae, str) else [f"{RESULTS}/{wildcards.experiment}/downloads/vae"]


def pipeline_of(wildcards):
    """Where the teacher comes from, as inputs: the folder that is downloaded, or the files of the user's own."""
    path = preset(wildcards).teacher.path
    return files_in(path) if path else [f"{RESULTS}/{wildcards.experiment}/downloads/teacher"]


def prompts_of(wildcards):
    """The prompts' embeddings, which a text-to-image network needs."""
    return f"{RESULTS}/{wildcards.experiment}/prompts.safetensors" if in_latents(wildcards) else []


def captions_of(wildcards):
    """The prompts, for CLIP."""
    return f"{RESULTS}/{wildcards.experiment}/captions.json" if in_latents(wildcards) else []


def pixels_of(wildcards):
    """The data as images."""
    name = "images" if in_latents(wildcards) else "data"
    return f"{RESULTS}/{wildcards.experiment}/{name}.safetensors"


def pictures_of(wildcards, sources):
    """Where images of samples are: of latents, those that were decoded for the features."""
    kind = "features" if in_latents(wildcards) else "samples"
    return [f"{RESULTS}/{wildcards.experiment}/{kind}/{source}.safetensors" for source in sources]


def space_of(wildcards):
    """What an ODE error is measured in."""
    return {"mixture": "coordinates", "captions": "latents"}.get(preset(wildcards).data.kind, "pixels")


def memory(wildcards):
    """Memory of a job that runs a network, in MB."""
    return preset(wildcards).mem_mb


def gpus(wildcards):
    """GPUs of a job that runs a network."""
    return preset(wildcards).gpu


def minutes(wildcards, attempt):
    """Time limit of a job that runs a network, on a cluster."""
    return preset(wildcards).runtime * attempt


def network_of(wildcards):
    """The network of a run from scratch, with the run's own dropout."""
    network, dropout = dump(preset(wildcards).network), run_of(wildcards).dropout
    return network if dropout is None else network | {"dropout": dropout}


def pairs_inputs(wildcards):
    """What a run from pairs learns from besides the data: the teacher's velocity, a frozen generator."""
    run, experiment, inputs = run_of(wildcards), wildcards.experiment, {}
    if run.velocity == "teacher":
        inputs["teacher"] = f"{RESULTS}/{experiment}/teacher"
    if not isinstance(run.coupling.generator, str):
        inputs["frozen"] = f"{RESULTS}/{experiment}/students/{run.coupling.generator.method}-s{run.seed}"
    return inputs


def asks_a_network(wildcards):
    """Whether a run from pairs follows the velocity of a teacher that is a network."""
    return run_of(wildcards).velocity == "teacher" and not is_exact(wildcards.experiment)


def true_ends(wildcards):
    """The schedules whose exact ODE end something is compared with."""
    experiment, settings = wildcards.experiment, preset(wildcards)
    found = {"vp": dump(settings.schedule)} if FROM_TARGETS[experiment] or settings.analysis.order_steps else {}
    if settings.analysis.order_steps:
        found["vp_refined"] = dump(settings.schedule)
    return found | ({"ve": dump(settings.consistency_training.edm)} if FROM_PAIRS[experiment] else {})


def analysed(experiment):
    """The runs whose students serve to measure couplings."""
    methods = EXPERIMENTS[experiment].analysis.coupling_methods
    return [run for run, row in FROM_PAIRS[experiment].items() if row.method in methods]


def paper_outputs(wildcards):
    """Metrics, claims, tables, figures and pages of every experiment."""
    outputs = [f"{RESULTS}/metrics.csv", f"{RESULTS}/claims.csv"]
    outputs += [f"{RESULTS}/tables/claims.{kind}" for kind in ("md", "tex", "html")]
    for experiment in EXPERIMENTS:
        outputs += [f"{RESULTS}/tables/{experiment}-main.{kind}" for kind in ("csv", "md", "tex", "html")]
        outputs += [
            f"{RESULTS}/figures/{experiment}-{name}.{kind}"
            for name in figures_of(experiment)
            for kind in ("pdf", "png")
        ]
        if FROM_PAIRS[experiment]:
            outputs += [f"{RESULTS}/tables/{experiment}-couplings.{kind}" for kind in ("csv", "md", "tex", "html")]
        outputs.append(f"{RESULTS}/pages/{experiment}-samples.html")
    if any(FROM_TARGETS[experiment] or is_exact(experiment) for experiment in EXPERIMENTS):
        outputs.append(f"{RESULTS}/pages/tradeoff.html")
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


def group_rows(experiment, runs=RUNS):
    """Run, method, seed and condition of every run: what claims and figures group by."""
    columns = ("run", "method", "seed", "group", "solver", "n_steps", "guidance", "targets", "parameters")
    return [{key: getattr(run, key) for key in columns} for run in runs[experiment].values()]


def pairs_rows(experiment):
    """Run, method, seed of every run from pairs, its μ where it is compared by μ, and the training's steps."""
    steps = EXPERIMENTS[experiment].consistency_training.training.steps
    rows = []
    for row in group_rows(experiment, FROM_PAIRS):
        compared, share = shares_of(FROM_PAIRS[experiment][row["run"]])
        rows.append(row | {"share": share if compared else None, "steps": steps})
    return rows


def pictured(experiment):
    """The runs shown in the sample grid: the first seed of each method, under the first condition
    of each guidance scale."""
    chosen = {}
    for run in FROM_TARGETS[experiment].values():
        chosen.setdefault((run.guidance, run.method), run)
    conditions = {run.guidance: run.group for run in reversed(chosen.values())}
    return [run for run in chosen.values() if conditions[run.guidance] == run.group]


def compared(experiment):
    """The sets on the page of samples: the teacher's conditions, and the runs of the first seeds of each method."""
    rows = [
        {"source": f"teacher-{name}", "method": "teacher", "condition": name, "n_steps": condition["n_steps"]}
        for name, condition in conditions_of(experiment).items()
    ]
    seeds = {}
    for run in RUNS[experiment].values():
        chosen = seeds.setdefault(run.method, [])
        if run.seed not in chosen and len(chosen) < PAGE_SEEDS:
            chosen.append(run.seed)
        if run.seed in chosen:
            steps = [n for n in EXPERIMENTS[experiment].evaluation.sampling_steps if run.from_pairs or n <= run.n_steps]
            row = {"source": run.run, "method": run.method, "group": run.group, "seed": run.seed}
            rows.append(row | {"condition": None if run.from_pairs else run.condition, "sampling_steps": steps})
    return rows
