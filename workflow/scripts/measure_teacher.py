from _job import job

with job(snakemake):
    from consistency.metrics import classifier, measure

    given, made, params = snakemake.input, snakemake.output, snakemake.params
    network, card = classifier.load(given.classifier)
    classifier.extract(made.features, network, given.samples, ["samples"], params.batch_size)
    measure.measure_teacher(
        made.metrics,
        params.run,
        made.features,
        given.data_features,
        given.noise,
        card,
        params.neighbours,
        params.settings,
    )
