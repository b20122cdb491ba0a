from _job import decoded, inputs, job

with job(snakemake):
    import importlib
    from pathlib import Path

    page = importlib.import_module(f"consistency.report.pages.{Path(snakemake.input.code).stem}")
    files = inputs(snakemake, without=("code", "shell", "style"))
    page.draw(snakemake.output[0], **files, **decoded(snakemake.params))
