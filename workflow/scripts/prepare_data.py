from _job import job

with job(snakemake, network=True):
    from consistency.data import prepare

    prepare.prepare(snakemake.output[0], snakemake.params.data)
