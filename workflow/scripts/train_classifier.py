from _job import job

with job(snakemake, training=True):
    from consistency.fitting import fit_classifier

    options = snakemake.params.classifier
    fit_classifier(
        snakemake.output.model,
        snakemake.output.stats,
        snakemake.params.side,
        snakemake.input.data,
        options["name"],
        options["channels"],
        options["feature_size"],
        options["training"],
        options["seed"],
    )
