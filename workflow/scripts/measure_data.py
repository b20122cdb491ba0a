from _job import job

with job(snakemake):
    from consistency.metrics import classifier, measure

    given, made, params = snakemake.input, snakemake.output, snakemake.params
    network, card = classifier.load(given.classifier)
    classifier.extract(made.features, network, given.images, ["train_images"], params.batch_size)
    measure.measure_data(made.metrics, params.run, made.features, card, params.neighbours, params.settings)
