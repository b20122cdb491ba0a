from _job import job

with job(snakemake):
    from consistency.report.tables import claims

    claims(dict(snakemake.output.items()), snakemake.input.table, snakemake.input.definitions)
