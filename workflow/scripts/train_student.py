from _job import checkpoints, job

with job(snakemake, training=True):
    from consistency.training.recipes import fit_student

    params = snakemake.params
    fit_student(
        snakemake.output.model,
        snakemake.output.stats,
        checkpoints(snakemake),
        snakemake.input.teacher,
        snakemake.input.manifest,
        params.run,
        params.objective,
        params.loss,
        params.parameters,
        params.lora_rank,
        params.schedule,
        params.timestep_offset,
        params.training,
        snakemake.input.initial,
        snakemake.input.prompts or None,
    )
