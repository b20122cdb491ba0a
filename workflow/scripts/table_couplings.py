from _job import job

with job(snakemake):
    from consistency.tables import couplings

    params = snakemake.params
    couplings(dict(snakemake.output.items()), snakemake.input[0], params.runs, params.title, params.data)
