"""The report in a real browser: it opens without network or script errors, and its tables read."""

import json
import subprocess
from pathlib import Path

import pytest
from helpers import require

# Flags that keep a headless Chromium from calling home.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--run-all-compositor-stages-before-draw",
    "--virtual-time-budget=5000",
]


def chromium(page: Path, profile: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Open a page in headless Chromium with an empty profile."""
    binary = require("chromium")
    command = [
        binary,
        *FLAGS,
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--v=0",
        *arguments,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory):
    return finished.folder / "results" / "report.html"


def test_report_opens_without_script_errors_or_requests(report, tmp_path):
    log = tmp_path / "net.json"
    done = chromium(report, tmp_path / "profile", f"--log-net-log={log}", "--dump-dom")
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "rror" in line]
    assert errors == []
    assert "Results" in done.stdout
    text = log.read_text(encoding="utf-8")
    events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")
    urls = {event.get("params", {}).get("url", "") for event in events["events"]}
    asked = {url for url in urls if url.startswith(("http:", "https:"))}
    assert not {url for url in asked if "report" in url or "cdn" in url or "unpkg" in url or "jsdelivr" in url}, asked


@pytest.mark.parametrize("name", ["claims", "digits-main"])
@pytest.mark.parametrize("width", [1280, 390])
def test_tables_read_in_the_page(finished, tmp_path, name, width):
    """Text is there as text, and the table scrolls inside the page, not the page itself."""
    source = finished.folder / "results" / "tables" / f"{name}.html"
    probe = "<script>document.title = 'wide:' + document.documentElement.scrollWidth</script></body>"
    page = tmp_path / f"{name}.html"
    page.write_text(source.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    shot = tmp_path / "shot.png"
    dom = chromium(page, tmp_path / "profile", f"--window-size={width},900", "--dump-dom").stdout
    chromium(page, tmp_path / "profile", f"--window-size={width},900", f"--screenshot={shot}")
    assert shot.stat().st_size > 5000
    assert ("Verdict" in dom) if name == "claims" else ("Direct CM" in dom)
    found = int(dom.split("wide:")[1].split("<")[0])
    assert found <= max(width, 500), found  # headless Chromium is never narrower than 500 pixels
