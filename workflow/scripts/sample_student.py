from _job import inputs, job

with job(snakemake):
    from consistency.config.jobs import SamplingJob
    from consistency.students.sampling import sample_student

    sample_student(snakemake.output[0], SamplingJob(**snakemake.params.sampling), inputs(snakemake))
