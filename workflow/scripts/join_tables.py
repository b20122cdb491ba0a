from _job import job

with job(snakemake):
    from consistency.report.tables import join

    join(snakemake.output[0], snakemake.input)
