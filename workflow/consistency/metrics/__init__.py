"""Metrics: features → statistics → rows, each step apart.

`classifier` makes features, `distances` compares them, `measure` turns files into rows with their
protocol.
"""
