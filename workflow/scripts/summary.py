"""Print the claims table and where everything is: `python workflow/scripts/summary.py [results]`."""

import sys

from _results import chosen
from _surroundings import open_streams, say
from consistency.errors import ConsistencyError
from consistency.report.verdicts import summary

open_streams()
results = chosen(sys.argv[1] if len(sys.argv) > 1 else None)
try:
    table = summary(results / "claims.csv")
except ConsistencyError as error:
    sys.exit(f"summary: {error}")
say(f"\nClaims (the ratio that a row names, with its 95 % interval)\n\n{table}\n")
for name, what in (
    ("report.html", "report with figures, tables and captions"),
    ("figures", "figures, PDF and PNG"),
    ("tables", "tables, CSV, Markdown, LaTeX and HTML"),
    ("metrics.csv", "every measured number, long form"),
    ("claims.csv", "every condition of every claim"),
):
    say(f"{results / name!s:<22} {what}")
