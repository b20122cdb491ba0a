"""Start snakemake where it would fail before it reads the workflow: for a user without a home or a name, and with one
line in a folder that cannot be written.

usage: run.py SNAKEMAKE-ARGUMENTS
"""

import os
import sys

from _surroundings import give_caches, give_name, open_streams

if __name__ == "__main__":
    open_streams()
    if not os.access(".snakemake" if os.path.isdir(".snakemake") else ".", os.W_OK | os.X_OK):
        sys.exit(f"run: {os.getcwd()} cannot be written, where Snakemake keeps its records; use a copy that is yours")
    give_name()
    give_caches()
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *sys.argv[1:]])
