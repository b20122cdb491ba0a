from _job import job

with job(snakemake):
    from consistency.evaluate import features, measure
    from consistency.files.storage import read_json

    given, made, params = snakemake.input, snakemake.output, snakemake.params
    cards = features.extract(made.features, given.samples, ["steps_", "budget_"], **params.extract)
    measure.measure_pairs_student(
        made.metrics,
        params.run,
        given.samples,
        made.features,
        given.data_features,
        given.noise,
        cards,
        params.neighbours,
        {**params.settings, "student": read_json(f"{given.student}/student.json")},
        given.truth or None,
        params.space,
    )
