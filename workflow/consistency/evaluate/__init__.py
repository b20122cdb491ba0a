"""Measurement: features, distances between them, and rows of metrics, each step apart."""
