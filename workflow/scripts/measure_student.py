from _job import job

with job(snakemake):
    from consistency.metrics.measure import measure_student
    from consistency.storage import read_json

    given, params = snakemake.input, snakemake.params
    measure_student(
        snakemake.output[0],
        params.run,
        given.samples,
        given.features,
        given.teacher_samples,
        given.teacher_features,
        given.data_features,
        given.noise,
        f"{given.classifier}/card.json",
        params.neighbours,
        {**params.settings, "student": read_json(f"{given.student}/student.json")},
    )
