from _job import checkpoints, job

with job(snakemake, training=True):
    from consistency.training.recipes import fit_teacher

    options = snakemake.params.teacher
    fit_teacher(
        snakemake.output.model,
        snakemake.output.stats,
        checkpoints(snakemake),
        snakemake.input.data,
        snakemake.params.network,
        snakemake.params.schedule,
        options["label_dropout"],
        options["training"],
        options["seed"],
    )
