from _job import job

with job(snakemake):
    from consistency.evaluate import features, measure

    given, made, params = snakemake.input, snakemake.output, snakemake.params
    cards = features.extract(
        made.features,
        given.samples,
        ["samples"],
        **params.extract,
        vae=params.vae,
        captions=given.captions or None,
        labels=given.noise,
    )
    measure.measure_teacher(
        made.metrics,
        params.run,
        made.features,
        given.data_features,
        given.noise,
        cards,
        params.neighbours,
        params.settings,
        given.samples,
        given.truth or None,
        params.space,
    )
