"""Compare two folders of results: `python workflow/scripts/compare.py A B [PAGE]`, by default `compare.html`.

Its status is 0 where every verdict is the same, 1 where one differs or stands in one folder alone, 2 for bad input.
"""

import sys
from pathlib import Path

from _surroundings import open_streams, say
from consistency.errors import ConsistencyError, printable
from consistency.report import comparison

open_streams()
a, b, page = [*sys.argv[1:], "", "", ""][:3]
page = page or "compare.html"
try:
    if not (a and b):
        raise ConsistencyError("name two folders of results: make compare A=results B=other/results")
    compared = comparison.compare(Path(a).expanduser(), Path(b).expanduser())
    comparison.write(page, compared)
except (ConsistencyError, OSError) as error:
    words = f"{page}: cannot be written ({error.strerror})" if isinstance(error, OSError) else str(error)
    say(f"compare: {printable(words)}", sys.stderr)
    sys.exit(2)
say(f"{comparison.text(compared)}\n\n{printable(page)}")
sys.exit(compared.verdict_changed)
