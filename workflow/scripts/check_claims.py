from _job import job

with job(snakemake):
    from consistency.config.claims import check

    params = snakemake.params
    check(snakemake.output[0], params.experiment, snakemake.input[0], params.runs, params.claims)
