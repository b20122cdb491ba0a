from _job import job

with job(snakemake):
    from consistency import data

    options = snakemake.params.data
    data.prepare(snakemake.output[0], options["name"], options["test_share"], options["seed"])
