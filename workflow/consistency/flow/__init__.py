"""Noise schedules, ODE solvers, time grids, optimal transport, and the streams of random numbers."""
