"""The typed configuration: every key, its default, its range. Imports nothing heavy."""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, model_validator

from .claims import AnyClaim
from .components import EDM, MLP, Analysis, Curriculum, Loss, Mse, Network, PseudoHuberNorm, Schedule
from .functions import CouplingKind, Objective, OwnFigure, OwnMetric, Sampler, Solver
from .gates import Gates
from .registry import BUILT_INS, Registry
from .sources import NAME, Count, Data, Extractor, Folder, Hub, OneLine, OwnPath, Seed, Strict, TrainedClassifier


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


# Of a list, at least one; a single value is a list of one.
SOME = Field(min_length=1), BeforeValidator(_as_list)


FlowName = Literal["vp", "ve", "linear", "trigflow"]
Parameterisation = Literal["boundary", "edm", "trigflow", "average_velocity"]
OF_FLOW = {"vp": "boundary", "ve": "edm", "linear": "average_velocity", "trigflow": "trigflow"}
Mode = Literal["paper", "trajectory"]
Parameters = Literal["full", "lora"]


class Training(Strict):
    """One training, of teacher, classifier or student."""

    steps: Count = Field(1500, description="optimiser steps")
    batch_size: Count = Field(128, description="samples per step")
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate")
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = Field(50, description="linear warm-up")
    decay_share: float = Field(0.3, ge=0, le=1, description="last share of the steps, over which the rate falls to 0")
    optimizer: Literal["adamw", "adamw8bit", "radam", "lion"] = Field(
        "adamw", description="torch's AdamW or RAdam, Lion, or bitsandbytes' 8-bit AdamW (AdamW where it is missing)"
    )
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    clip_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null for no clipping")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="decay of the weights' average; null for none")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where there is one")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="autocast of the network, no = float32")
    accumulate: Count = Field(1, description="parts that a batch is computed in, to save memory; divides it")
    gradient_checkpointing: bool = Field(False, description="of networks that can: less memory, more time")
    threads: Count = Field(1, description="CPU threads of the job")
    checkpoint_every: Count = Field(500, description="steps between checkpoints")
    log_every: Count = Field(25, description="steps between records in stats.jsonl")


class TeacherConfig(Strict):
    """Where the teacher comes from."""

    source: Literal["train", "path", "hub", "analytic"] = Field(
        "train",
        description="train it here, copy a saved folder, download it, or the closed form of data kind mixture",
    )
    path: OwnPath | None = Field(None, description="folder of a save_pretrained network or pipeline, for source path")
    hub: Hub | None = Field(None, description="for source hub")
    subfolder: str | None = Field(None, description="of the network in path or hub, such as unet")
    of: str | None = Field(
        None,
        description="with source train: the preset that trains it, for this one too; data, schedule, network, teacher "
        "and replicates have to be the same there",
    )
    label_dropout: float = Field(
        0.1, ge=0, lt=1, description="probability of the null class, which every guidance but 1 needs"
    )
    timestep_offset: Literal[-1, 0] = Field(
        -1, description="added to t = 1..T before the network: -1 as trained, 0 as paper A's reference calls it"
    )
    precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="of the network when it is solved, on a GPU; the state stays float32"
    )
    compile: bool = Field(
        False,
        description="with data kind captions: compile the blocks of SDXL's UNet where it is solved on a GPU "
        "(torch.compile, with a C compiler): a minute a job, once more at the first call of another size; then 1.15 "
        "times as fast, on an H100",
    )
    seed: Seed = Field(0, description="of the teacher's first weights and of the order of its data")
    training: Training = Field(
        Training(), description="how it is trained, or the network that students of an analytic one start as"
    )


class ClassifierConfig(Strict):
    """The classifier whose penultimate layer gives the features."""

    name: str = Field("digits-classifier", pattern=NAME, description="the extractor's name in every table")
    channels: Count = Field(32, description="of the first convolution")
    feature_size: Count = Field(64, description="features per image")
    seed: Seed = Field(0, description="of the classifier's first weights and of the order of its data")
    training: Training = Field(Training(), description="how it is trained")


class Targets(Strict):
    """The precomputed ODE solutions."""

    mode: Mode = Field("paper", description="paper: one solve a draw; trajectory: N pairs a solve")
    count: Count = Field(65536, description="draws per (solver, N, w, mode)")
    shards: Count = Field(2, le=100_000, description="jobs the draws are split into; values don't depend on it")
    seed: Seed = Field(1, description="of the draws: data, noise and start time of each")
    batch_size: Count = Field(4096, description="samples in one call of the teacher (w ≠ 1 doubles it)")


class Student(Strict):
    """How students of precomputed targets are trained. They start as the teacher (of an analytic one: as a network
    trained on the same data with the settings of `teacher`)."""

    parameters: Parameters = Field("full", description="full fine-tuning, or LoRA adapters")
    lora_rank: Count = Field(64, description="rank = alpha of the adapters")
    loss: Loss = Field(Mse(kind="mse"), description="of methods that learn from targets and name none")
    training: Training = Field(Training(), description="how each student of targets is trained")


class PairsTraining(Training):
    """One training from pairs: as others, without clipping (paper B has none; at 1 it would normalise most late
    steps), and with an average of the weights, which is evaluated and may generate."""

    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm; null for no clipping")
    ema_decay: float | None = Field(0.999, gt=0, lt=1, description="decay of the weights' average; null for none")


class ConsistencyTraining(Strict):
    """How methods that learn from pairs (objective consistency_training) are trained, from scratch."""

    edm: EDM = Field(EDM(), description="noise levels and preconditioning")
    curriculum: Curriculum = Field(Curriculum(), description="how many noise levels, and how they are drawn")
    loss: Loss = Field(
        PseudoHuberNorm(kind="pseudo_huber_norm"), description="of methods that learn from pairs and name none"
    )
    training: PairsTraining = Field(PairsTraining(), description="how each student of pairs is trained")
    budgets: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.03125, 0.0625, 0.125, 0.25, 0.5, 0.75], min_length=1, description="shares of training measured too"
    )


class Evaluation(Strict):
    """What is sampled and measured."""

    count: Count = Field(2000, description="shared initial noises, so samples per source")
    seed: Seed = Field(2, description="of the shared noise and of re-noising")
    sampling_steps: Annotated[list[Count], BeforeValidator(_as_list)] = Field(
        [1, 2, 4, 8], min_length=1, description="numbers of sampling steps; those above a run's N are left out"
    )
    start_times: Count = Field(
        10, description="start times at which the ODE error is also measured; at most N of them are there"
    )
    neighbours: Count = Field(3, description="k of precision and recall")
    other_noises: bool = Field(
        True, description="also sample the teacher from other noises, for distances to it; doubles its sampling"
    )
    batch_size: Count = Field(2000, description="samples computed together")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="of students that sample, on a GPU")
    metrics: list[OwnMetric] = Field([], description="your own metrics besides, functions of the files in plugins")


class Frozen(Strict):
    """An earlier, partly trained student as the generator: of another method, with the run's own seed."""

    method: str = Field(description="a method that learns from pairs, and has a run of each seed")
    budget: float = Field(gt=0, le=1, description="share of its training; one of consistency_training.budgets")


class Coupling(Strict):
    """Which data point goes with which noise (paper B)."""

    kind: CouplingKind = Field(description="a function of couplings.py")
    share: float = Field(1.0, ge=0, le=1, description="μ, share of samples it applies to; the others are independent")
    generator: Literal["ema", "online"] | Frozen = Field(
        "ema", description="the student's average, itself, or a frozen one"
    )


class LogitNormal(Strict):
    """Continuous times t ≥ r, each logit-normal on the flow's range (MeanFlow)."""

    kind: Literal["logit_normal"] = Field(description="logit_normal, continuous times")
    mean: float = Field(-0.4, ge=-20, le=20, description="mean of the logit")
    deviation: float = Field(1.0, gt=0, le=20, description="deviation of the logit")
    distinct: float = Field(0.25, ge=0, le=1, description="share of samples with r < t; of the others r = t")


class Method(Strict):
    """A line of the comparison: an objective, and what it changes."""

    objective: Objective = Field(description="a function of objectives.py")
    params: dict[str, Any] = Field({}, description="of the objective: its keyword parameters")
    label: Annotated[OneLine, Field(min_length=1, max_length=40, pattern=r"^[^<>&]*$")] | None = Field(
        None, description="its name in figures and tables; default: the method's key"
    )
    draws: Literal["targets", "pairs"] | None = Field(
        None, description="what it learns from: precomputed targets, or pairs drawn while training; the objective's own"
    )
    flow: FlowName | None = Field(None, description="the student's; vp of targets, ve of pairs")
    parameterisation: Parameterisation | None = Field(
        None, description="how the network's output becomes a point; the flow's own"
    )
    loss: Loss | None = Field(None, description="default: student.loss, or consistency_training.loss")
    coupling: Coupling | None = Field(None, description="of pairs; independent by default")
    velocity: Literal["pair", "teacher"] = Field("pair", description="of pairs: their own (CT), or the teacher's (CD)")
    times: LogitNormal | None = Field(
        None, description="of pairs; default: consistency_training.curriculum with flow ve, else logit_normal"
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="of a UNet trained from scratch; default: network.dropout"
    )
    sampler: Sampler | None = Field(
        None, description="a function of samplers.py; default: flow_map with average_velocity, else renoise"
    )
    sampler_params: dict[str, Any] = Field({}, description="of the sampler: its keyword parameters")
    least_steps: Count = Field(
        1, description="smallest number of sampling steps that is measured; the sampler's own where that is larger"
    )


class Grid(Strict):
    """Runs, as the product of the lists; a single value is a list of one."""

    method: Annotated[list[str], *SOME] | None = Field(
        None,
        description="names from `methods`, by default all that learn from targets; a row of methods that learn "
        "from pairs takes seeds only",
    )
    solver: Annotated[list[Solver], *SOME] = Field(["ddim"], description="the teacher's, functions of solvers.py")
    n_steps: Annotated[list[Count], *SOME] = Field([10], description="N, teacher steps; divides schedule.steps")
    guidance: Annotated[list[Annotated[float, Field(ge=0, le=1000)]], *SOME] = Field(
        [1.0], description="w, 1 is no guidance"
    )
    seed: Annotated[list[Seed], *SOME] = Field(
        [0, 1, 2], description="of replicates; what each of them redraws, `replicates` says"
    )
    targets: Annotated[list[Mode], *SOME] | None = Field(None, description="default: targets.mode")
    parameters: Annotated[list[Parameters], *SOME] | None = Field(None, description="default: student.parameters")


class Experiment(Strict):
    """One preset: everything that its results depend on."""

    title: OneLine = Field(description="one line for tables and the report")
    data: Data = Field(description="the data set, by its kind")
    schedule: Schedule = Field(Schedule(), description="the teacher's noise levels")
    network: Network = Field(MLP(kind="mlp"), description="what is trained here from nothing, by its kind")
    teacher: TeacherConfig = Field(TeacherConfig(), description="where the teacher comes from")
    classifier: ClassifierConfig = Field(ClassifierConfig(), description="the classifier that gives features")
    extractors: list[Extractor] = Field(
        [TrainedClassifier(kind="classifier")],
        min_length=1,
        description="what images are measured with; the first one that gives features leads in tables and figures",
    )
    targets: Targets = Field(Targets(), description="the precomputed ODE solutions")
    student: Student = Field(Student(), description="how methods that learn from targets are trained")
    consistency_training: ConsistencyTraining = Field(
        ConsistencyTraining(), description="how methods that learn from pairs are trained"
    )
    methods: dict[str, Method] = Field(description="name → objective; a new method is one line here")
    evaluation: Evaluation = Field(Evaluation(), description="what is sampled and measured")
    runs: list[Grid] = Field(min_length=1, description="the table of runs, as grids")
    replicates: Literal["all", "students"] = Field(
        "all",
        description="what a run's seed redraws: all, which is the teacher's training, targets, noise and student; or "
        "students, which share the rest, so that intervals cover nothing else",
    )
    analysis: Analysis = Field(Analysis(), description="what is measured besides, of solvers and couplings")
    mem_mb: Count = Field(2000, description="memory that each job on a network asks Snakemake for, in MB")
    gpu: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="GPUs that each job on a network asks Snakemake for; a training takes a process on each of them"
    )
    runtime: Count = Field(
        60,
        description="minutes after which a cluster ends a job on a network; a second attempt has twice as many, "
        "a third three times, and training continues from its checkpoint",
    )
    gates: Gates = Field(Gates(), description="what has to be sound before a claim is decided")
    claims: list[AnyClaim] = Field([], description="claims decided on this experiment: names, or claims of your own")
    margin: float = Field(
        0.05, ge=0, le=10, description="of claims: a ratio within this share of its bound is no practical difference"
    )
    figures: list[OwnFigure] = Field([], description="your own figures besides, functions of the files in plugins")

    _registry: Registry = PrivateAttr(BUILT_INS)

    @model_validator(mode="after")
    def _keep_registry(self, info: ValidationInfo) -> Experiment:
        self._registry = info.context or BUILT_INS
        return self

    @property
    def registry(self) -> Registry:
        """The functions that it may name: built-in ones and a user's own."""
        return self._registry

    def draws(self, method: str) -> str:
        """What a method learns from, targets or pairs: its own choice, or the objective's."""
        line = self.methods[method]
        return line.draws or self.registry.get("objective", line.objective).options.get("draws", "targets")

    def redrawn(self, seed: int, replicate: int) -> int:
        """One of the preset's seeds as a replicate has it: its own, where a replicate redraws everything."""
        if self.replicates == "students":
            return seed
        digest = blake2b(f"{seed} {replicate}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 11  # in the range of `Seed`

    @property
    def data_set(self) -> str:
        """The data set's name, as in tables: of images and captions their own, else their kind."""
        return getattr(self.data, "name", self.data.kind)


class Run(Strict):
    """One row of the table of runs. A run from pairs has neither solver, N, w nor targets."""

    method: str
    seed: int
    objective: str
    params: dict[str, Any] = Field({})
    draws: Literal["targets", "pairs"]
    flow: FlowName
    parameterisation: Parameterisation
    sampler: str
    sampler_params: dict[str, Any] = Field({})
    least_steps: int = 1
    loss: Loss
    solver: str | None = None
    n_steps: int | None = None
    guidance: float | None = None
    targets: Mode | None = None
    parameters: Parameters = "full"
    coupling: Coupling | None = None
    velocity: Literal["pair", "teacher"] = "pair"
    times: LogitNormal | None = None
    dropout: float | None = None

    @property
    def from_pairs(self) -> bool:
        """Whether it learns from pairs rather than from precomputed targets."""
        return self.draws == "pairs"

    @property
    def id(self) -> str:
        """A readable one, such as direct-ddim-n50-w4-s0 or ct-gc-s0."""
        return "-".join([self.method, *[self.group] * (not self.from_pairs), f"s{self.seed}"])

    @property
    def condition(self) -> str:
        """Teacher solver, N and w, as in file names, such as ddim-n50-w4."""
        return f"{self.solver}-n{self.n_steps}-w{self.guidance:g}"

    @property
    def group(self) -> str:
        """All settings but method and seed: the condition that a comparison is made in."""
        if self.from_pairs:
            return "scratch"
        extra = [self.targets] * (self.targets != "paper") + [self.parameters] * (self.parameters != "full")
        return "-".join([self.condition, *extra])

    def sampling_steps(self, configured: list[int]) -> list[int]:
        """Those of the configured numbers of sampling steps that make sense for it."""
        return [n for n in configured if self.least_steps <= n <= (self.n_steps or n)]


class Config(Strict):
    """config.yaml."""

    experiments: list[str] = Field(min_length=1, description="presets to run, a list or a comma list")
    results: Folder = Field("results", description="folder of all outputs")
    tensorboard: bool = Field(False, description="trainings also log to results/{experiment}/tensorboard")
    plugins: Annotated[list[Folder], BeforeValidator(lambda value: [] if value is None else _as_list(value))] = Field(
        [], description="Python files with your own objectives, couplings, samplers, metrics and figures"
    )
    overrides: Annotated[dict[str, dict[str, Any]], BeforeValidator(lambda value: {} if value is None else value)] = (
        Field({}, description="experiment → keys of its preset to change")
    )
