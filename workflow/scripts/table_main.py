from _job import job

with job(snakemake):
    from consistency.tables import main_comparison

    params = snakemake.params
    main_comparison(dict(snakemake.output.items()), snakemake.input[0], params.runs, params.title)
