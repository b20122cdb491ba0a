from _job import job

with job(snakemake):
    from consistency.evaluate import features, measure

    given, made, params = snakemake.input, snakemake.output, snakemake.params
    cards = features.extract(
        made.features, given.images, [params.reference], **params.extract, captions=given.captions or None, cache=True
    )
    measure.measure_data(
        made.metrics, params.run, made.features, cards, params.neighbours, params.settings, data=given.images
    )
