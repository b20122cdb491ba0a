from _job import job

with job(snakemake):
    from consistency.metrics.measure import measure_teacher

    given, params = snakemake.input, snakemake.params
    measure_teacher(
        snakemake.output[0],
        params.run,
        given.features,
        given.data_features,
        given.noise,
        f"{given.classifier}/card.json",
        params.neighbours,
        params.settings,
    )
