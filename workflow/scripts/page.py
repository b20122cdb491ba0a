from _job import decoded, job

with job(snakemake):
    import importlib
    from pathlib import Path

    page = importlib.import_module(f"consistency.report.pages.{Path(snakemake.input.code).stem}")
    inputs = {
        name: value for name, value in snakemake.input.items() if name not in ("code", "shell", "style") and value
    }
    page.draw(snakemake.output[0], **inputs, **decoded(snakemake.params))
