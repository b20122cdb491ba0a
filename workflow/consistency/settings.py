"""The typed configuration: every key, its default, its range. Imports nothing heavy."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt

from .claims import CLAIMS

PACKAGE = Path(__file__).parent


def functions_of(module: str) -> list[str]:
    """Names of a module's public functions, read without importing it (or torch)."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]


def nearest(word: str, allowed: list[str]) -> str:
    """'; did you mean …?' for a misspelt word, or nothing."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def condition(solver: str, n_steps: int, guidance: float) -> str:
    """The id of a teacher condition, such as ddim-n50-w4."""
    return f"{solver}-n{n_steps}-w{guidance:g}"


OBJECTIVES = functions_of("objectives")
SOLVERS = functions_of("solvers")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _one_of(allowed: list[str]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"allowed: {', '.join(allowed)}{nearest(str(value), allowed)}")
        return value

    return BeforeValidator(check)


Solver = Annotated[str, _one_of(SOLVERS), Field(json_schema_extra={"enum": SOLVERS})]
Objective = Annotated[str, _one_of(OBJECTIVES), Field(json_schema_extra={"enum": OBJECTIVES})]
Claim = Annotated[str, _one_of(list(CLAIMS)), Field(json_schema_extra={"enum": list(CLAIMS)})]
Mode = Literal["paper", "trajectory"]
Parameters = Literal["full", "lora"]


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Strict):
    """The data set and its split."""

    name: Literal["digits"] = Field("digits", description="digits: scikit-learn's 1,797 images of 8×8")
    test_share: float = Field(0.2, gt=0, lt=1, description="share of the images held out from teacher and classifier")
    seed: NonNegativeInt = Field(0, description="of the shuffle before the split")


class Schedule(Strict):
    """The VP (DDPM) noise schedule, β linear in its square root."""

    steps: PositiveInt = Field(1000, description="T, the number of timesteps")
    beta_start: float = Field(0.00085, gt=0, lt=1, description="variance of the first forward step")
    beta_end: float = Field(0.012, gt=0, lt=1, description="variance of the last forward step")


class MLP(Strict):
    """A residual MLP over the flattened sample."""

    kind: Literal["mlp"]
    width: PositiveInt = Field(192, multiple_of=2, description="of the residual stream")
    depth: PositiveInt = Field(3, description="number of residual blocks")


class UNet(Strict):
    """diffusers' UNet2DModel."""

    kind: Literal["unet"]
    channels: list[Annotated[int, Field(gt=0, multiple_of=8)]] = Field(
        [32, 64], min_length=1, description="width of each resolution"
    )
    layers_per_block: PositiveInt = Field(1, description="residual blocks per resolution")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations dropped in training")


Network = Annotated[MLP | UNet, Field(discriminator="kind")]


class Training(Strict):
    """One training, of teacher, classifier or student (AdamW)."""

    steps: PositiveInt = Field(1500, description="optimiser steps")
    batch_size: PositiveInt = Field(128, description="samples per step")
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate")
    warmup_steps: NonNegativeInt = Field(50, description="linear warm-up")
    decay_share: float = Field(0.3, ge=0, le=1, description="last share of the steps, over which the rate falls to 0")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    clip_norm: float = Field(1.0, gt=0, description="largest gradient norm")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="decay of the weights' average; null for none")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where there is one")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="autocast of the network, no = float32")
    checkpoint_every: PositiveInt = Field(500, description="steps between checkpoints")
    log_every: PositiveInt = Field(25, description="steps between records in stats.jsonl")


class TeacherConfig(Strict):
    """Where the teacher comes from."""

    source: Literal["train", "path"] = Field("train", description="train it here, or copy a saved folder")
    path: str | None = Field(None, description="folder of a save_pretrained teacher, for source path")
    label_dropout: float = Field(0.1, ge=0, lt=1, description="probability of the null class, for guidance")
    timestep_offset: Literal[-1, 0] = Field(
        -1, description="added to t = 1..T before the network: -1 as trained, 0 as paper A's reference calls it"
    )
    seed: NonNegativeInt = 0
    training: Training = Training()


class ClassifierConfig(Strict):
    """The classifier whose penultimate layer gives the features."""

    name: str = Field("digits-classifier", description="the extractor's name in every table")
    channels: PositiveInt = Field(32, description="of the first convolution")
    feature_size: PositiveInt = Field(64, description="features per image")
    seed: NonNegativeInt = 0
    training: Training = Training()


class Targets(Strict):
    """The precomputed ODE solutions."""

    mode: Mode = Field("paper", description="paper: one solve a draw; trajectory: N pairs a solve")
    count: PositiveInt = Field(65536, description="draws per (solver, N, w, mode)")
    shards: PositiveInt = Field(2, description="jobs the draws are split into; values don't depend on it")
    seed: NonNegativeInt = 1
    batch_size: PositiveInt = Field(4096, description="draws solved together")


class Mse(Strict):
    """Mean squared error."""

    kind: Literal["mse"]


class PseudoHuber(Strict):
    """sqrt(d² + c²) − c per element."""

    kind: Literal["pseudo_huber"]
    c: float = Field(0.001, gt=0)


class Student(Strict):
    """How every student is trained."""

    parameters: Parameters = Field("full", description="full fine-tuning, or LoRA adapters")
    lora_rank: PositiveInt = Field(64, description="rank = alpha of the adapters")
    loss: Annotated[Mse | PseudoHuber, Field(discriminator="kind")] = Mse(kind="mse")
    training: Training = Training()


class Evaluation(Strict):
    """What is sampled and measured."""

    count: PositiveInt = Field(2000, description="shared initial noises, so samples per source")
    seed: NonNegativeInt = Field(2, description="of the shared noise and of re-noising")
    sampling_steps: Annotated[list[PositiveInt], BeforeValidator(_as_list)] = Field(
        [1, 2, 4, 8], min_length=1, description="numbers of sampling steps; those above a run's N are left out"
    )
    start_times: PositiveInt = Field(10, description="start times at which the ODE error is also measured")
    neighbours: PositiveInt = Field(3, description="k of precision and recall")
    batch_size: PositiveInt = Field(2000, description="samples computed together")


class Method(Strict):
    """A line of the comparison: an objective, and what it changes in `student`."""

    objective: Objective
    loss: Annotated[Mse | PseudoHuber, Field(discriminator="kind")] | None = None


class Grid(Strict):
    """Runs, as the product of the lists; a single value is a list of one."""

    method: Annotated[list[str], BeforeValidator(_as_list)] | None = Field(
        None, description="names from `methods`; all of them by default"
    )
    solver: Annotated[list[Solver], BeforeValidator(_as_list)] = ["ddim"]
    n_steps: Annotated[list[PositiveInt], BeforeValidator(_as_list)] = Field(
        [10], description="N, teacher steps; divides schedule.steps"
    )
    guidance: Annotated[list[Annotated[float, Field(ge=0)]], BeforeValidator(_as_list)] = Field(
        [1.0], description="w, 1 is no guidance"
    )
    seed: Annotated[list[NonNegativeInt], BeforeValidator(_as_list)] = [0, 1, 2]
    targets: Annotated[list[Mode], BeforeValidator(_as_list)] | None = Field(None, description="default: targets.mode")
    parameters: Annotated[list[Parameters], BeforeValidator(_as_list)] | None = Field(
        None, description="default: student.parameters"
    )


class Experiment(Strict):
    """One preset: everything that its results depend on."""

    title: str = Field(description="one line for tables and the report")
    data: Data = Data()
    schedule: Schedule = Schedule()
    network: Network = MLP(kind="mlp")
    teacher: TeacherConfig = TeacherConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    targets: Targets = Targets()
    student: Student = Student()
    methods: dict[str, Method] = Field(description="name → objective; a new method is one line here")
    evaluation: Evaluation = Evaluation()
    runs: list[Grid] = Field(min_length=1, description="the table of runs, as grids")
    claims: list[Claim] = Field([], description="claims decided on this experiment")


class Run(Strict):
    """One row of the table of runs."""

    method: str
    objective: str
    solver: str
    n_steps: int
    guidance: float
    seed: int
    targets: Mode
    parameters: Parameters
    loss: Annotated[Mse | PseudoHuber, Field(discriminator="kind")]

    @property
    def run(self) -> str:
        """The readable id, such as direct-ddim-n50-w4-s0."""
        return f"{self.method}-{self.group}-s{self.seed}"

    @property
    def condition(self) -> str:
        """Teacher solver, N and w, as in file names."""
        return condition(self.solver, self.n_steps, self.guidance)

    @property
    def group(self) -> str:
        """All settings but method and seed: the condition that a comparison is made in."""
        extra = [self.targets] * (self.targets != "paper") + [self.parameters] * (self.parameters != "full")
        return "-".join([self.condition, *extra])


class Config(Strict):
    """config.yaml."""

    experiments: list[str] = Field(min_length=1, description="presets to run, a list or a comma list")
    results: str = Field("results", description="folder of all outputs")
    overrides: dict[str, dict[str, Any]] = Field({}, description="experiment → keys of its preset to change")
