from _job import job

with job(snakemake):
    from consistency.metrics import classifier

    network, _ = classifier.load(snakemake.input.classifier)
    sets = ["train_images", "samples", "steps_"]
    classifier.extract(snakemake.output[0], network, snakemake.input.images, sets, snakemake.params.batch_size)
