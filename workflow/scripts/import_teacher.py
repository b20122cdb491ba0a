from _job import job

with job(snakemake):
    from consistency.fitting import import_teacher

    import_teacher(snakemake.output.model, snakemake.input.source, snakemake.input.data, snakemake.params.timesteps)
