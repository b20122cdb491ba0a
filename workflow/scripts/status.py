"""Print what is being trained and what is finished: `python workflow/scripts/status.py [results] [--watch]`."""

import argparse
import time
from contextlib import suppress

from _results import chosen
from _surroundings import open_streams, say
from consistency.errors import printable
from consistency.runtime import status

open_streams()
parser = argparse.ArgumentParser(description="What is being trained and what is finished.")
parser.add_argument("results", nargs="?", help="folder of all outputs; by default the last run's")
parser.add_argument("--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="again and again, every 5 s")
options = parser.parse_args()
results = chosen(options.results)
with suppress(KeyboardInterrupt):
    while True:
        text = f"{printable(results)}:\n\n{status.table(results)}"
        say(f"\033[2J\033[H{time.strftime('%H:%M:%S')}\n{text}" if options.watch else text)
        if not options.watch:
            break
        time.sleep(options.watch)
