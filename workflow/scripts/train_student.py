from _job import checkpoints, inputs, job

with job(snakemake, training=True):
    from consistency.config.jobs import StudentJob
    from consistency.training.recipes import fit_student

    fit_student(
        StudentJob(**snakemake.params.student),
        inputs(snakemake),
        folder=snakemake.output.model,
        stats=snakemake.output.stats,
        side_folder=checkpoints(snakemake),
    )
