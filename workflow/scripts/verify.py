"""Compare every file of a folder of results with the sha256 that it carries: `… verify.py [results]`."""

import sys

from _results import chosen
from _surroundings import open_streams, say
from consistency.errors import printable
from consistency.files.storage import verify

open_streams()
results = chosen(sys.argv[1] if len(sys.argv) > 1 else None)
checked, damaged = verify(results)
if not checked and not damaged:
    sys.exit(f"verify: {printable(results)} holds no file of this pipeline; name the folder of results")
for line in damaged:
    say(line, sys.stderr)
counts = f"{checked} files are as they were written, {len(damaged)} are damaged"
say(f"{printable(results)}: {counts}; figures, tables and logs carry no hash")
sys.exit(bool(damaged))
