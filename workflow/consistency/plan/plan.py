"""The plan of an experiment: its runs, what its outputs are called, and what each job needs.

Paths are as rules write them, below the folder of results. Nothing is read from disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from ..config import jobs
from ..config.resolve import expand
from ..config.settings import ConsistencyTraining, Experiment, Run, Student
from ..config.sources import Hub, Url
from .preflight import weights

CALLING = {"timestep_offset", "precision", "compile", "hub", "subfolder", "of"}  # keys of a teacher
PAGE_SEEDS = 3  # most seeds of a method on the page of samples
GROUPING = ("method", "seed", "group", "solver", "n_steps", "guidance", "targets", "parameters")

Row = dict[str, Any]


class Plan:
    """What one experiment consists of. What jobs ask for again and again is computed once.

    Attributes:
        name: the experiment's.
        experiment: its settings.
        folder: its outputs, as rules name them.
        lender: the folder of the experiment that trains its teacher, by default its own.
        job_folder: the same folder as a job sees it: a workflow that uses this one as a module may put a prefix before
            `folder` in inputs and outputs, but not in params.
        runs, from_targets, from_pairs: id → run, in the table's order: all of them, and by what they learn from.
        exact: whether the teacher is a closed form, so that the ODE's true end can be computed.
        in_latents: whether samples are latents, of captioned images.
        own: the user's own files by part, data, teacher and vae; None where a part has none.
        downloads: part → where it is downloaded from: teacher, vae, extractors' weights.
        space: what an ODE error is measured in, coordinates, latents or pixels.
        reference: the part of the data that metrics compare with; labels: its labels, where the file has them.
        metrics: the table of metrics.
        other_noises: whether the teacher is sampled from other noises too.
        pixels: the data as images.
        prompts, captions: the prompts' embeddings and their texts; [] where there are none.
    """

    def __init__(self, name: str, experiment: Experiment, results: str = "results", job_results: str | None = None):
        """
        Args:
            results, job_results: the parents of `folder` and `job_folder`, by default the same.

        Raises:
            ConfigError: the table of runs cannot be expanded.
        """
        self.name, self.experiment = name, experiment
        self.folder, self.job_folder = f"{results}/{name}", f"{job_results or results}/{name}"
        self.lender = f"{results}/{experiment.teacher.of or name}"
        self.runs = {run.id: run for run in expand(name, experiment)}
        self.from_targets = {key: run for key, run in self.runs.items() if not run.from_pairs}
        self.from_pairs = {key: run for key, run in self.runs.items() if run.from_pairs}
        data, teacher = experiment.data, experiment.teacher
        self.exact, self.in_latents = teacher.source == "analytic", data.kind == "captions"
        vae = getattr(data, "vae", None)
        self.own = {
            "data": getattr(data, "folder", None) or getattr(data, "source", None),
            "teacher": teacher.path,
            "vae": vae if isinstance(vae, str) else None,
        }
        self.downloads = weights(experiment)
        self.space = {"mixture": "coordinates", "captions": "latents"}.get(data.kind, "pixels")
        self.reference = "test_images" if data.kind == "mixture" else "train_images"
        self.labels = None if self.in_latents else self.reference.replace("images", "labels")
        self.metrics = f"{self.folder}/metrics.csv"
        self.other_noises = experiment.evaluation.other_noises and bool(self.from_targets)
        self.pixels = f"{self.folder}/{'images' if self.in_latents else 'data'}.safetensors"
        self.prompts = f"{self.folder}/prompts.safetensors" if self.in_latents else []
        self.captions = f"{self.folder}/captions.json" if self.in_latents else []

    # Replicates: the names of what a seed redraws end with it.

    def replicate(self, run_id: str) -> str:
        """The end of the names of what a run's seed redraws besides the student: `-s0`, or nothing."""
        return f"-s{self.runs[run_id].seed}" if self.experiment.replicates == "all" else ""

    @cached_property
    def replicates(self) -> dict[str, int]:
        """The end of a replicate's names → its seed, in the table's order."""
        ends: dict[str, int] = {}
        for key, run in self.runs.items():
            ends.setdefault(self.replicate(key), run.seed)
        return ends

    @cached_property
    def shown(self) -> str:
        """The end of the names of the replicate that figures and pages of samples show: the one with most runs."""
        return max(self.replicates, key=[self.replicate(key) for key in self.runs].count)

    def redrawn(self, seed: int, replicate: str) -> int:
        """One of the preset's seeds as a replicate has it, which may be one of a preset that borrows the teacher."""
        return self.experiment.redrawn(seed, int(replicate.removeprefix("-s") or 0))

    def teacher(self, replicate: str) -> str:
        """The teacher of a replicate; one that is not trained is the same for all of them."""
        return f"{self.lender}/teacher{replicate if self.experiment.teacher.source == 'train' else ''}"

    def initial(self, replicate: str) -> str:
        """The network that students of targets start as: the teacher, or one trained here where it is a formula."""
        return f"{self.folder}/initial{replicate}" if self.exact else self.teacher(replicate)

    def noise(self, replicate: str) -> str:
        """The initial noise that a replicate's samples share."""
        return f"{self.folder}/noise{replicate}.safetensors"

    def truth(self, replicate: str) -> str | list[str]:
        """The ODE's true end from a replicate's noise; [] where it is not known."""
        return f"{self.folder}/truth{replicate}.safetensors" if self.exact else []

    @cached_property
    def conditions(self) -> dict[str, Row]:
        """Teacher conditions by id: solver, N and w."""
        keys = ("solver", "n_steps", "guidance")
        return {run.condition: _columns(run, keys) for run in self.from_targets.values()}

    @cached_property
    def analysed(self) -> list[str]:
        """The ids of the runs whose students serve to measure couplings."""
        methods = self.experiment.analysis.coupling_methods
        return [key for key, run in self.from_pairs.items() if run.method in methods]

    @cached_property
    def sources(self) -> list[str]:
        """All that is measured: data, teacher's conditions, runs, couplings, solvers' orders."""
        teachers = list(dict.fromkeys(self.teachers(self.from_targets)))
        couplings = [f"couplings-{run}" for run in self.analysed]
        orders = ["orders"] * bool(self.experiment.analysis.order_steps)
        return ["data", *teachers, *self.runs, *couplings, *orders]

    @cached_property
    def true_ends(self) -> dict[str, Row]:
        """The flows whose exact ODE end something is compared with, with their options by name."""
        orders, vp = bool(self.experiment.analysis.order_steps), self.experiment.schedule.model_dump()
        ends = {name: vp for name, used in (("vp", self.from_targets or orders), ("vp_refined", orders)) if used}
        return ends | {run.flow: jobs.map_job(self.experiment, run).flow_options for run in self.from_pairs.values()}

    # Inputs.

    @cached_property
    def measured(self) -> list[str]:
        """The rows of all that is measured, from which the table of metrics is made."""
        return [f"{self.folder}/metrics/{source}.json" for source in self.sources]

    def teachers(self, runs: Iterable[str]) -> list[str]:
        """The teacher's condition of each of these runs, as a source."""
        return [f"teacher-{self.runs[run].condition}{self.replicate(run)}" for run in runs]

    def samples(self, sources: Iterable[str]) -> list[str]:
        """The samples of sources, in the space that they are drawn in."""
        return [f"{self.folder}/samples/{source}.safetensors" for source in sources]

    def pictures(self, sources: Iterable[str]) -> list[str]:
        """The samples of sources as images: latents are decoded where their features are computed."""
        kind = "features" if self.in_latents else "samples"
        return [f"{self.folder}/{kind}/{source}.safetensors" for source in sources]

    def stats(self, runs: Iterable[str]) -> list[str]:
        """The training records of runs."""
        return [f"{self.folder}/stats/{run}.jsonl" for run in runs]

    def shards(self, targets: str) -> list[str]:
        """The shards of a set of targets, such as paper-ddim-n10-w1."""
        count = self.experiment.targets.shards
        return [f"{self.folder}/targets/{targets}/shard-{shard}.safetensors" for shard in range(count)]

    def section(self, run_id: str) -> Student | ConsistencyTraining:
        """The part of the configuration that a run is trained by."""
        return jobs.section(self.experiment, self.runs[run_id])

    def lessons(self, run_id: str) -> dict[str, Any]:
        """What a student is trained from: targets and the teacher's weights; or data, with the teacher whose velocity
        it follows and the frozen student that generates its pairs."""
        run, folder, replicate = self.runs[run_id], self.folder, self.replicate(run_id)
        if not run.from_pairs:
            targets = f"{run.targets}-{run.condition}{replicate}"
            inputs = {"manifest": f"{folder}/targets/{targets}/manifest.json", "shards": self.shards(targets)}
            inputs |= {"teacher": self.teacher(replicate), "initial": self.initial(replicate)}
            return inputs | {"prompts": self.prompts}
        inputs = {"data": f"{folder}/data.safetensors"}
        if run.velocity == "teacher":
            inputs["teacher"] = self.teacher(replicate)
        if not isinstance(run.coupling.generator, str):
            inputs["frozen"] = f"{folder}/students/{run.coupling.generator.method}-s{run.seed}"
        return inputs

    def sampled_from(self, run_id: str) -> dict[str, Any]:
        """What samples of a student need besides it: the noise, the network under its adapters, the teacher's
        samples."""
        replicate = self.replicate(run_id)
        inputs = {"noise": self.noise(replicate)}
        if self.runs[run_id].from_pairs:
            return inputs
        samples = self.samples(self.teachers([run_id]))[0]
        return inputs | {"initial": self.initial(replicate), "prompts": self.prompts, "teacher_samples": samples}

    def compared_with(self, run_id: str) -> dict[str, str]:
        """What samples of a student are compared with besides the data: the noise, the ODE's true end, the teacher's
        samples."""
        replicate = self.replicate(run_id)
        inputs = {"noise": self.noise(replicate), "truth": self.truth(replicate)}
        if self.runs[run_id].from_pairs:
            return inputs
        (teacher,) = self.teachers([run_id])
        features = f"{self.folder}/features/{teacher}.safetensors"
        return inputs | {"teacher_samples": self.samples([teacher])[0], "teacher_features": features}

    @cached_property
    def weights(self) -> list[str]:
        """The folders of the extractors' weights, as inputs."""
        folders = [options.get(key) for options in self._extractors(self.folder) for key in ("folder", "aesthetic")]
        return [folder for folder in folders if folder]

    # Params.

    def teacher_training(self, replicate: str) -> Row:
        """How a replicate's teacher is trained, without the keys that say how it is called once it is."""
        teacher = self.experiment.teacher
        return teacher.model_dump(exclude=CALLING) | {"seed": self.redrawn(teacher.seed, replicate)}

    def targets(self, replicate: str) -> Row:
        """How a replicate's targets are drawn and solved."""
        targets = self.experiment.targets
        return targets.model_dump(exclude={"mode"}) | {"seed": self.redrawn(targets.seed, replicate)}

    def teacher_row(self, condition: str, replicate: str) -> Row:
        """The columns of metrics.csv that name a replicate's teacher under a condition."""
        row = {"run": f"teacher-{condition}{replicate}", "method": "teacher", **self.conditions[condition]}
        return row | ({"seed": self.replicates[replicate]} if replicate else {})

    @cached_property
    def measuring(self) -> Row:
        """How samples are measured: the extractors with the folders of their weights, the batch."""
        extractors = self._extractors(self.job_folder)
        return {"extractors": extractors, "batch_size": self.experiment.evaluation.batch_size}

    def _extractors(self, folder: str) -> list[Row]:
        """The extractors' options, with their weights below `folder`; a mixture's features are its coordinates."""
        own = {"classifier": f"{folder}/classifier", "efficientnet-lite0": None}
        extractors = []
        for extractor in self.experiment.extractors if self.experiment.data.kind != "mixture" else []:
            weights = own.get(extractor.kind, f"{folder}/downloads/{extractor.kind}")
            aesthetic = {"aesthetic": f"{folder}/downloads/aesthetic"} if getattr(extractor, "aesthetic", None) else {}
            extractors.append({"kind": extractor.kind, "folder": weights, **aesthetic})
        return extractors

    @cached_property
    def own_metrics(self) -> Row:
        """The user's own metrics, and what they are measured on."""
        metrics, registry = self.experiment.evaluation.metrics, self.experiment.registry
        return {
            "metrics": [registry.get("metric", metric.name).call(metric.params) for metric in metrics],
            "space": self.space,
            "reference": self.reference,
            "vae": self.vae if metrics else None,
        }

    @cached_property
    def own_inputs(self) -> dict[str, str]:
        """The data, which the user's own metrics may compare with."""
        data = {"data": f"{self.folder}/data.safetensors", "pixels": self.pixels}
        return data if self.experiment.evaluation.metrics else {}

    @cached_property
    def vae(self) -> Row | None:
        """The VAE's folder and how it runs, where samples are latents."""
        if not self.in_latents:
            return None
        data, folder = self.experiment.data, self.own["vae"] or f"{self.job_folder}/downloads/vae"
        return {"folder": folder, "batch_size": data.batch_size, "precision": data.precision}

    def training(self, run_id: str) -> Row:
        """All that a student's training depends on, besides files (`jobs.StudentJob`)."""
        return jobs.training_job(self.experiment, self.runs[run_id]).model_dump()

    def sampling(self, run_id: str) -> Row:
        """All that a student's samples depend on, besides files (`jobs.SamplingJob`)."""
        return jobs.sampling_job(self.experiment, self.runs[run_id]).model_dump()

    # Tables, figures, pages: what they show, and their rows.

    @cached_property
    def rows(self) -> list[Row]:
        """Run, method, seed and condition of every run: what claims, tables and figures group by."""
        return [{"run": key, **_columns(run, GROUPING), "label": self._label(run)} for key, run in self.runs.items()]

    @cached_property
    def rows_from_targets(self) -> list[Row]:
        """`rows` of the runs from targets."""
        return [row for row in self.rows if row["run"] in self.from_targets]

    @cached_property
    def rows_from_pairs(self) -> list[Row]:
        """`rows` of the runs from pairs, with the steps of their training, and μ of those that are compared by it."""
        steps = self.experiment.consistency_training.training.steps
        rows = [row for row in self.rows if row["run"] in self.from_pairs]
        return [row | {"share": _share(self.runs[row["run"]]), "steps": steps} for row in rows]

    @cached_property
    def rows_analysed(self) -> list[Row]:
        """`rows_from_pairs` of the runs that serve to measure couplings."""
        return [row for row in self.rows_from_pairs if row["run"] in self.analysed]

    @cached_property
    def pictured(self) -> list[str]:
        """The ids of the runs in the grid of samples, all from one noise: each method's first seed, under the first
        condition of each w."""
        first: dict[tuple[float | None, str], str] = {}
        for key, run in self.from_targets.items():
            if self.replicate(key) == self.shown:
                first.setdefault((run.guidance, run.method), key)
        conditions = {self.runs[key].guidance: self.runs[key].group for key in reversed(first.values())}
        return [key for key in first.values() if conditions[self.runs[key].guidance] == self.runs[key].group]

    @cached_property
    def rows_pictured(self) -> list[Row]:
        """`rows` of the runs in the grid of samples, each with its smallest number of sampling steps."""
        rows, configured = {row["run"]: row for row in self.rows}, self.experiment.evaluation.sampling_steps
        return [rows[key] | {"fewest_steps": min(self.runs[key].sampling_steps(configured))} for key in self.pictured]

    def _label(self, run: Run) -> str | None:
        """A method's name in figures and tables, where it is not its key alone: its label, or key and params."""
        numbers = {key: value for key, value in run.params.items() if isinstance(value, int | float)}
        params = ", ".join(f"{key}={value}" for key, value in numbers.items())
        return self.experiment.methods[run.method].label or (f"{run.method} ({params})" if params else None)

    @cached_property
    def compared(self) -> list[Row]:
        """The sets on the page of samples, all from one noise: the teacher's conditions, and the runs of each method's
        first seeds."""
        runs = {key: run for key, run in self.runs.items() if self.replicate(key) == self.shown}
        teachers = {run.condition: self.teachers([key])[0] for key, run in runs.items() if not run.from_pairs}
        rows = [
            {"source": source, "method": "teacher", "condition": name, "n_steps": self.conditions[name]["n_steps"]}
            for name, source in teachers.items()
        ]
        seeds: dict[str, list[int]] = {}
        for key, run in runs.items():
            chosen = seeds.setdefault(run.method, [])
            if run.seed not in chosen and len(chosen) < PAGE_SEEDS:
                chosen.append(run.seed)
            if run.seed in chosen:
                steps = run.sampling_steps(self.experiment.evaluation.sampling_steps)
                row = {"source": key, "method": run.method, "label": self._label(run), "group": run.group}
                row |= {"seed": run.seed, "flow": run.flow}
                rows.append(row | {"condition": None if run.from_pairs else run.condition, "sampling_steps": steps})
        return rows

    @cached_property
    def own_figures(self) -> dict[str, Row]:
        """The user's own figures: the name of each file → what its job calls (`registry.Function.call`)."""
        get, uses = self.experiment.registry.get, self.experiment.figures
        return {use.name.replace("_", "-"): get("figure", use.name).call(use.params) for use in uses}

    @cached_property
    def figures(self) -> list[str]:
        """The figures that have something to show."""
        names = ["forest"] * bool(self.experiment.claims)
        if self.from_targets:
            names += ["tradeoff", "training"]
            names += ["points"] if self.exact else ["start-times", "sampling-steps", "samples"]
        if self.from_pairs:
            names += ["convergence"]
        if len({share for run in self.from_pairs.values() if (share := _share(run)) is not None}) > 1:
            names += ["share"]
        if self.analysed:
            names += ["velocity-variance", "transport", *["discrepancy", "trajectories"] * self.exact]
        return [*names, *["orders"] * bool(self.experiment.analysis.order_steps), *self.own_figures]


def row_of(run: Run) -> Row:
    """The columns of metrics.csv that name a run."""
    return jobs.row_of(run).model_dump()


def _columns(run: Run, names: Iterable[str]) -> Row:
    return {name: getattr(run, name) for name in names}


def _share(run: Run) -> float | None:
    """μ of a run from pairs, where it belongs to the comparison by μ: it is consistency training whose generator is the
    student's average, or where no pair is generated. None: it does not."""
    if run.objective != "consistency_training":
        return None
    if run.coupling.kind == "generator_induced" and run.coupling.generator == "ema":
        return run.coupling.share
    return 0.0 if run.coupling.kind == "independent" and run.velocity == "pair" else None


def megabytes(source: Hub | Url | None) -> int:
    """Size of a download, as the configuration states it. 0: it states none."""
    return round(1000 * (getattr(source, "gigabytes", None) or 0))
