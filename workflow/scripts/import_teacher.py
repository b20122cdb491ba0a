from _job import job

with job(snakemake):
    from consistency.training.recipes import import_teacher

    inputs, params = snakemake.input, snakemake.params
    import_teacher(
        snakemake.output.model,
        params.folder or inputs.source[0],
        inputs.data,
        params.schedule,
        params.subfolder,
        inputs.prompts or None,
    )
