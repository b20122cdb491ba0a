from _job import checkpoints, job

with job(snakemake, training=True):
    from consistency.training.recipes import fit_pairs_student

    params = snakemake.params
    fit_pairs_student(
        snakemake.output.model,
        snakemake.output.stats,
        checkpoints(snakemake),
        snakemake.input.data,
        params.run,
        params.objective,
        params.coupling,
        params.velocity,
        params.network,
        params.options,
        params.schedule,
        params.timestep_offset,
        snakemake.input.get("teacher"),
        snakemake.input.get("frozen"),
    )
