from _job import job

with job(snakemake):
    from consistency.metrics.measure import measure_data

    card = f"{snakemake.input.classifier}/card.json"
    params = snakemake.params
    measure_data(
        snakemake.output[0], params.run, snakemake.input.data_features, card, params.neighbours, params.settings
    )
