from _job import job

with job(snakemake):
    from consistency.evaluate import features, yardstick
    from consistency.evaluate.own import OwnMetrics
    from consistency.report.soundness import warn

    inputs, outputs, params = snakemake.input, snakemake.output, snakemake.params
    captions = inputs.captions or None
    cards = features.extract(
        outputs.features, inputs.images, [params.reference], **params.extract, captions=captions, cache=True
    )
    yardstick.measure_data(
        outputs.metrics,
        params.run,
        outputs.features,
        cards,
        params.neighbours,
        params.settings,
        data=inputs.images,
        labels=params.labels,
        own=OwnMetrics(**params.own, data=inputs.get("data"), images=inputs.get("pixels")),
    )
    warn(outputs.metrics, outputs.metrics, params.warned_of)
