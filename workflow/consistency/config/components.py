"""Parts of an experiment: noise levels, networks, losses, and what is measured of couplings and solvers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .sources import Count, Strict

# Exact assignment of a batch, at every training step (docs/equations.md says what it costs).
LARGEST_ASSIGNMENT = 2048


class Schedule(Strict):
    """The VP (DDPM) noise schedule."""

    kind: Literal["scaled_linear", "linear"] = Field(
        "scaled_linear", description="β linear in its square root (SDXL), or linear (DDPM on CIFAR-10)"
    )
    steps: Count = Field(1000, le=100_000, description="T, the number of timesteps")
    beta_start: float = Field(0.00085, ge=1e-8, lt=1, description="variance of the first forward step, below beta_end")
    beta_end: float = Field(0.012, gt=0, lt=1, description="variance of the last forward step")


class MLP(Strict):
    """A residual MLP over the flattened sample."""

    kind: Literal["mlp"] = Field(description="mlp, a residual MLP")
    width: Count = Field(192, multiple_of=2, description="of the residual stream")
    depth: Count = Field(3, description="number of residual blocks")


class UNet(Strict):
    """diffusers' UNet2DModel."""

    kind: Literal["unet"] = Field(description="unet, diffusers' UNet2DModel")
    channels: list[Annotated[int, Field(gt=0, le=65_536, multiple_of=8)]] = Field(
        [32, 64],
        min_length=1,
        max_length=16,
        description="width of each resolution; each after the first halves the side",
    )
    layers_per_block: Count = Field(1, description="residual blocks per resolution")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations dropped in training")
    attention: list[Count] = Field(
        [], description="sides in pixels at which blocks attend, such as 16; of those that the network has"
    )
    norm_groups: Count = Field(8, description="groups of the group normalisation; divides every width")


Network = Annotated[MLP | UNet, Field(discriminator="kind")]


class Mse(Strict):
    """Mean squared error."""

    kind: Literal["mse"] = Field(description="mse, the mean squared error")


class PseudoHuber(Strict):
    """sqrt(d² + c²) − c per element."""

    kind: Literal["pseudo_huber"] = Field(description="pseudo_huber, by element")
    c: float = Field(0.001, ge=1e-12, description="difference at which the square turns into the absolute value")


class PseudoHuberNorm(Strict):
    """sqrt(‖d‖² + C²) − C of the whole sample, C = c √dim (iCT)."""

    kind: Literal["pseudo_huber_norm"] = Field(description="pseudo_huber_norm, of the whole sample")
    c: float = Field(0.00054, ge=1e-12, description="C over the root of the number of values, iCT's 0.00054")


Loss = Annotated[Mse | PseudoHuber | PseudoHuberNorm, Field(discriminator="kind")]


class EDM(Strict):
    """The VE schedule and the preconditioning of consistency training (paper B)."""

    # Ranges in which powers and squares neither overflow nor vanish in float32.
    sigma_min: float = Field(0.002, ge=1e-9, le=1e9, description="smallest noise level, below sigma_max")
    sigma_max: float = Field(80.0, ge=1e-9, le=1e9, description="largest noise level")
    rho: float = Field(7.0, ge=0.1, le=1000, description="exponent of the Karras grid")
    sigma_data: float = Field(0.5, ge=1e-9, le=1e9, description="deviation of the data, for the preconditioning")


class Curriculum(Strict):
    """iCT's number of noise levels over training, and the distribution of the step."""

    s0: Count = Field(10, description="steps of the grid at the start, at most s1")
    s1: Count = Field(1280, description="steps of the grid at the end, which the doublings must reach")
    p_mean: float = Field(-1.1, description="mean of ln σ, near those of the grid")
    p_std: float = Field(2.0, gt=0, description="deviation of ln σ")


class VelocityFit(Strict):
    """How the denoiser is trained that gives the mean velocity of a coupling's flow, one for each coupling."""

    steps: Count = Field(700, description="optimiser steps")
    batch_size: Count = Field(256, description="draws per step")
    learning_rate: float = Field(8e-3, gt=0, description="peak learning rate")
    width: Count = Field(64, multiple_of=2, description="of the residual MLP")
    depth: Count = Field(2, description="number of its residual blocks")
    count: Annotated[int, Field(ge=64)] = Field(32_768, description="draws that it learns from")


class Analysis(Strict):
    """What is measured where the teacher is known in closed form, and of couplings."""

    order_steps: list[Count] = Field([], description="numbers of solver steps for the teacher's discretisation error")
    coupling_methods: list[str] = Field([], description="methods (from pairs) whose students serve as f and generator")
    steps: list[Annotated[int, Field(ge=2)]] = Field([10, 20, 40, 80, 160, 320, 640, 1280], description="grid steps")
    count: Annotated[int, Field(ge=64, le=10**6)] = Field(
        4096, description="draws for each estimate; of the exact optimal transport the first 1,024"
    )
    gradient_budget: float = Field(
        0.125, gt=0, lt=1, description="share of training after which gradients are compared; they vanish at its end"
    )
    batch_size: Annotated[int, Field(gt=0, le=LARGEST_ASSIGNMENT)] = Field(
        128, description="batch of the couplings in the estimates"
    )
    velocity: VelocityFit = Field(VelocityFit(), description="how the mean velocity of a coupling is learned")
