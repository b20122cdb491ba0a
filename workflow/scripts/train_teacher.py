from _job import checkpoints, job

with job(snakemake, training=True):
    from consistency.training.recipes import fit_teacher

    params = snakemake.params
    fit_teacher(
        snakemake.output.model,
        snakemake.output.stats,
        checkpoints(snakemake),
        data_path=snakemake.input.data,
        network=params.network,
        schedule=params.schedule,
        label_dropout=params.teacher["label_dropout"],
        settings=params.teacher["training"],
        seed=params.teacher["seed"],
    )
