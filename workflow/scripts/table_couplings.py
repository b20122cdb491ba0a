from _job import decoded, job

with job(snakemake):
    from consistency.report.tables import couplings

    couplings(dict(snakemake.output.items()), snakemake.input[0], **decoded(snakemake.params))
