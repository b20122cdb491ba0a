from _job import job

with job(snakemake):
    from consistency.evaluate.measure import collect

    collect(snakemake.output[0], snakemake.params.experiment, snakemake.input)
