"""Print the claims table and where everything is: `python workflow/scripts/summary.py [results]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from consistency import claims
from consistency.config import results_folder

results = Path(sys.argv[1]) if len(sys.argv) > 1 else results_folder()
print(f"\nClaims (the ratio that a row names, with its 95 % interval)\n\n{claims.summary(results / 'claims.csv')}\n")
for name, what in (
    ("report.html", "report with figures, tables and captions"),
    ("figures", "figures, PDF and PNG"),
    ("tables", "tables, CSV, Markdown, LaTeX and HTML"),
    ("metrics.csv", "every measured number, long form"),
    ("claims.csv", "every condition of every claim"),
):
    print(f"{results / name!s:<22} {what}")
