"""Consistency models against direct ODE regression: the library behind the pipeline.

Pure PyTorch and NumPy; it knows nothing of Snakemake and can be used from a notebook.
Nothing heavy is imported here: each module imports what it needs.
"""

__version__ = "0.1.0"
