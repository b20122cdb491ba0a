from _job import job

with job(snakemake, network=True):
    from consistency import data

    data.prepare(snakemake.output[0], snakemake.params.data)
