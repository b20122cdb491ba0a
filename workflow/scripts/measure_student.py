from _job import inputs, job

with job(snakemake):
    from consistency.evaluate import features, measure
    from consistency.evaluate.own import OwnMetrics
    from consistency.files.storage import read_json

    files, output, params = inputs(snakemake), snakemake.output, snakemake.params
    cards = features.extract(
        output.features,
        files["samples"],
        ["steps_", "budget_"],
        **params.extract,
        vae=params.vae,
        captions=files.get("captions"),
        labels=files["noise"],
    )
    names = ("data_features", "noise", "teacher_samples", "teacher_features", "truth")
    measure.measure_student(
        output.metrics,
        params.run,
        files["samples"],
        output.features,
        measure.References(**{name: files[name] for name in names if name in files}, truth_of=params.truth_of),
        cards=cards,
        neighbours=params.neighbours,
        settings={**params.settings, "student": read_json(f"{files['student']}/student.json")},
        space=params.space,
        own=OwnMetrics(**params.own, data=files.get("data"), images=files.get("pixels")),
    )
