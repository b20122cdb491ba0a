from _job import job

with job(snakemake):
    from consistency.evaluate import features, measure
    from consistency.evaluate.own import OwnMetrics
    from consistency.report.soundness import warn

    inputs, outputs, params = snakemake.input, snakemake.output, snakemake.params
    cards = features.extract(
        outputs.features,
        inputs.samples,
        ["samples", "other_samples"],
        **params.extract,
        vae=params.vae,
        captions=inputs.captions or None,
        labels=inputs.noise,
    )
    measure.measure_teacher(
        outputs.metrics,
        params.run,
        features=outputs.features,
        data_features=inputs.data_features,
        noise=inputs.noise,
        cards=cards,
        neighbours=params.neighbours,
        settings=params.settings,
        samples=inputs.samples,
        truth=inputs.truth or None,
        space=params.space,
        own=OwnMetrics(**params.own, data=inputs.get("data"), images=inputs.get("pixels")),
    )
    warn(outputs.metrics, inputs.yardstick, params.warned_of)
