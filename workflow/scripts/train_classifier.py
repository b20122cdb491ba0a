from _job import checkpoints, job

with job(snakemake, training=True):
    from consistency.training.recipes import fit_classifier

    options = snakemake.params.classifier
    fit_classifier(
        snakemake.output.model,
        snakemake.output.stats,
        checkpoints(snakemake),
        snakemake.input.data,
        options["name"],
        options["channels"],
        options["feature_size"],
        options["training"],
        options["seed"],
    )
