from _job import decoded, job

with job(snakemake):
    from consistency.report.tables import main_comparison

    main_comparison(dict(snakemake.output.items()), snakemake.input[0], **decoded(snakemake.params))
