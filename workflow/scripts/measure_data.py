from _job import job

with job(snakemake):
    from consistency.metrics import features, measure

    given, made, params = snakemake.input, snakemake.output, snakemake.params
    card = features.extract(
        made.features, given.images, [params.reference], params.batch_size, given.classifier or None
    )
    measure.measure_data(made.metrics, params.run, made.features, card, params.neighbours, params.settings)
