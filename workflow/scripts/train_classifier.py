from _job import checkpoints, job

with job(snakemake, training=True):
    from consistency.training.recipes import fit_classifier

    options = dict(snakemake.params.classifier)
    fit_classifier(
        snakemake.output.model,
        snakemake.output.stats,
        checkpoints(snakemake),
        data_path=snakemake.input.data,
        settings=options.pop("training"),
        **options,
    )
