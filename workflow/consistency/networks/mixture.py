"""Mixtures of Gaussians: data whose score, ε-prediction and PF-ODE are known in closed form.

For data `x ~ Σ_j π_j N(m_j, C_j)` the noised variable `α x + σ z` has the density
`Σ_j π_j N(α m_j, α² C_j + σ² I)`, again a mixture, so everything that a trained teacher estimates is
exact here, at every noise level, in VP (α² + σ² = 1) and in VE (α = 1). All arithmetic is float64.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ..errors import ConfigError
from ..files.storage import check_folder, load_tensors

DOUBLE = torch.float64


class Mixture:
    """A mixture of K Gaussians in d dimensions.

    Args:
        weights: (K,), positive, sum 1.
        means: (K, d).
        covariances: (K, d, d), symmetric positive definite.

    Raises:
        ConfigError: weights that do not sum to 1, a covariance that is not positive definite, or
            shapes that do not fit together.
    """

    def __init__(self, weights: torch.Tensor, means: torch.Tensor, covariances: torch.Tensor):
        self.weights, self.means, self.covariances = (v.to(DOUBLE) for v in (weights, means, covariances))
        if self.means.ndim != 2 or not all(v.isfinite().all() for v in (weights, means, covariances)):
            raise ConfigError(f"mixture: means of shape {tuple(means.shape)}; allowed: (K, d), and finite numbers")
        count, size = self.means.shape
        if self.weights.shape != (count,) or self.covariances.shape != (count, size, size):
            shapes = [tuple(v.shape) for v in (weights, means, covariances)]
            raise ConfigError(
                f"mixture: weights, means, covariances of shapes {shapes}; allowed: (K,), (K, d), (K, d, d)"
            )
        if (self.weights <= 0).any() or abs(self.weights.sum().item() - 1) > 1e-9:
            raise ConfigError(f"mixture: weights {self.weights.tolist()} must be positive and sum to 1")
        self._values, self._vectors = torch.linalg.eigh(self.covariances)
        if not torch.allclose(self.covariances, self.covariances.mT) or (self._values <= 0).any():
            worst = int(self._values.min(1).values.argmin())
            raise ConfigError(
                f"mixture: component {worst}: the covariance is not symmetric positive definite "
                f"(smallest eigenvalue {self._values[worst].min():.3g})"
            )

    @property
    def mean(self) -> torch.Tensor:
        """Of the whole mixture, (d,)."""
        return self.weights @ self.means

    def to(self, device: torch.device) -> Mixture:
        """Move the parameters."""
        for name in ("weights", "means", "covariances", "_values", "_vectors"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    @classmethod
    def load(cls, folder: str | Path) -> Mixture:
        """Read what `mixtures.write_teacher` wrote; raises StorageError."""
        check_folder(folder)
        tensors, _ = load_tensors(Path(folder) / "mixture.safetensors", ["weights", "means", "covariances"])
        return cls(**tensors)

    def score(self, x: torch.Tensor, alpha: torch.Tensor | float, sigma: torch.Tensor | float) -> torch.Tensor:
        """∇ log p of `α x₀ + σ z` at x (B, d) → (B, d); α, σ scalars or (B,)."""
        alpha, sigma = _column(alpha, x)[..., None], _column(sigma, x)[..., None]
        offset = x.to(DOUBLE)[:, None] - alpha * self.means
        projected = torch.einsum("bkd,kde->bke", offset, self._vectors)
        variance = alpha**2 * self._values + sigma**2
        scaled = projected / variance
        # log of weight times density (B, K), and (α² C + σ² I)⁻¹ (x − α m), (B, K, d)
        exponent = -0.5 * ((projected * scaled).sum(-1) + variance.log().sum(-1))
        exponent = exponent - 0.5 * self.means.shape[1] * math.log(2 * math.pi) + self.weights.log()
        gradient = torch.einsum("bke,kde->bkd", scaled, self._vectors)
        return -(exponent.softmax(1)[..., None] * gradient).sum(1)

    def eps(self, x: torch.Tensor, alpha: torch.Tensor | float, sigma: torch.Tensor | float) -> torch.Tensor:
        """`E[z | α x₀ + σ z = x] = −σ ∇ log p`, (B, d) → (B, d). With α = 1 it is the velocity dx/dσ of the
        VE probability-flow ODE (paper B's v)."""
        return -_column(sigma, x) * self.score(x, alpha, sigma)


def _column(value: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    """A scalar or (B,) as float64 (1, 1) or (B, 1)."""
    return torch.as_tensor(value, dtype=DOUBLE, device=like.device).reshape(-1, 1)
