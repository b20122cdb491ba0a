from _job import decoded, job

with job(snakemake):
    import importlib
    from pathlib import Path

    figure = importlib.import_module(f"consistency.report.figures.{Path(snakemake.input.code).stem}")
    inputs = {name: value for name, value in snakemake.input.items() if name not in ("code", "style")}
    figure.draw(snakemake.output.pdf, snakemake.output.png, **decoded(snakemake.params), **inputs)
