"""The teacher as an ODE, its precomputed solutions, and the exact ones."""
