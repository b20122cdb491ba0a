"""Snakemake's own report, made by a second Snakemake over the finished results, with our style and large pages."""

from _job import job

with job(snakemake):
    import json
    import logging
    import subprocess
    import sys
    import tempfile
    from pathlib import Path

    from consistency.errors import ConsistencyError
    from consistency.files.storage import UNFINISHED, atomic
    from consistency.runtime.preemption import parent_follower

    with tempfile.TemporaryDirectory() as folder, atomic(snakemake.output[0]) as finished:
        UNFINISHED.add(Path(folder))
        settings, page = Path(folder) / "config.json", Path(folder) / "report.html"
        settings.write_text(json.dumps(snakemake.params.config), encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", snakemake.params.target, "--report", str(page), "--nolock"]
        command += ["--snakefile", snakemake.params.snakefile, "--configfile", str(settings)]
        command += ["--report-stylesheet", snakemake.input.stylesheet]
        done = subprocess.run(command, check=False, capture_output=True, text=True, preexec_fn=parent_follower())
        logging.info(done.stdout + done.stderr)
        if done.returncode:
            raise ConsistencyError(f"the report was not made, see {snakemake.log[0]}")
        body, end = page.read_text(encoding="utf-8").rsplit("</body>", 1)
        script = Path(snakemake.input.frames).read_text(encoding="utf-8")
        finished.write_text(f"{body}<script>\n{script}</script>\n</body>{end}", encoding="utf-8")
