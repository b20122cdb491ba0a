from _job import job

with job(snakemake):
    from consistency.metrics import classifier, measure
    from consistency.storage import read_json

    given, made, params = snakemake.input, snakemake.output, snakemake.params
    network, card = classifier.load(given.classifier)
    classifier.extract(made.features, network, given.samples, ["steps_"], params.batch_size)
    measure.measure_student(
        made.metrics,
        params.run,
        given.samples,
        made.features,
        given.teacher_samples,
        given.teacher_features,
        given.data_features,
        given.noise,
        card,
        params.neighbours,
        {**params.settings, "student": read_json(f"{given.student}/student.json")},
    )
