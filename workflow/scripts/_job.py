"""What every script shares: the library's path, threads, the log file, one-line errors."""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@contextmanager
def job(snakemake: Any, network: bool = False) -> Iterator[None]:
    """Run a script's body: progress goes to the rule's log, an error to log and terminal as one line.

    Threads are set through the environment, so that torch and NumPy, imported in the body, see them. No job but
    those with `network` asks the Hugging Face hub for anything.
    """
    gc.set_threshold(100_000, 20, 20)  # importing torch makes objects, not garbage
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(snakemake.threads)
    if not network:
        os.environ["HF_HUB_OFFLINE"] = "1"
    from consistency.errors import ConsistencyError

    log = snakemake.log[0]
    logging.basicConfig(filename=log, filemode="w", level=logging.INFO, format="%(asctime)s %(message)s")
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log that cannot be written must not hide why the job stops
    try:
        yield
    except (ConsistencyError, OSError, MemoryError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        logging.error(line)
        print(f"\n{snakemake.rule}: {line}", file=sys.stderr, flush=True)
        sys.exit(1)
    except Exception:
        logging.error(traceback.format_exc())
        print(f"\n{snakemake.rule}: unexpected error, see {log}", file=sys.stderr, flush=True)
        traceback.print_exc()
        sys.exit(1)
    # Everything is written. Taking torch apart, object by object, costs another half second a job.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
