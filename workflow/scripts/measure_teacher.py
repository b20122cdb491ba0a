from _job import job

with job(snakemake):
    from consistency.metrics import features, measure

    given, made, params = snakemake.input, snakemake.output, snakemake.params
    card = features.extract(made.features, given.samples, ["samples"], params.batch_size, given.classifier or None)
    measure.measure_teacher(
        made.metrics,
        params.run,
        made.features,
        given.data_features,
        given.noise,
        card,
        params.neighbours,
        params.settings,
        given.samples,
        given.truth or None,
    )
