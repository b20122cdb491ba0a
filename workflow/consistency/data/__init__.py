"""Data sets: their readers, how images are prepared, and mixtures of Gaussians."""
