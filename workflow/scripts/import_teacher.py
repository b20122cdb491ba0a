from _job import job

with job(snakemake):
    from consistency.training.recipes import import_teacher

    given, params = snakemake.input, snakemake.params
    import_teacher(
        snakemake.output.model,
        params.folder or given.source[0],
        given.data,
        params.schedule,
        params.subfolder,
        given.prompts or None,
    )
