"""Try a method on small batches of random data, before anything is trained.

usage: try.py METHOD [EXPERIMENT]    EXPERIMENT: a preset; by default the first one of config.yaml that has the method
"""

import os
import sys
import tempfile
from pathlib import Path

from _surroundings import open_streams, say


def main(method: str, experiment: str | None = None) -> None:
    """Print what is seen, line by line."""
    from consistency.config import load, strict
    from consistency.plan.trial import attempt, chosen

    settings = strict.read(Path("config.yaml"))
    if experiment is not None:
        settings["experiments"] = [experiment]
    name, preset = chosen(load(settings, chosen_elsewhere=experiment is not None)[1], method)
    with tempfile.TemporaryDirectory() as folder:
        for line in attempt(name, preset, method, Path(folder)):
            say(line)


if __name__ == "__main__":
    open_streams()
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from consistency.errors import ConsistencyError

    try:
        main(*sys.argv[1:])
    except ConsistencyError as error:
        sys.exit(f"try: {error}")
