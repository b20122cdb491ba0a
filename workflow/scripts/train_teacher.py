from _job import job

with job(snakemake, training=True):
    from consistency.fitting import fit_teacher

    options = snakemake.params.teacher
    fit_teacher(
        snakemake.output.model,
        snakemake.output.stats,
        snakemake.params.side,
        snakemake.input.data,
        snakemake.params.network,
        snakemake.params.schedule,
        options["label_dropout"],
        options["training"],
        options["seed"],
    )
