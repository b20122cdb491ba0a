from _job import job

with job(snakemake):
    from consistency.data.mixtures import write_teacher

    write_teacher(snakemake.output.model, snakemake.params.data)
