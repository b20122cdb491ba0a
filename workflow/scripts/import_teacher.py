from _job import job

with job(snakemake):
    from consistency.fitting import import_teacher

    given, params = snakemake.input, snakemake.params
    import_teacher(
        snakemake.output.model, given.source, given.data, params.timesteps, params.subfolder, given.prompts or None
    )
