from _job import job

with job(snakemake):
    from consistency.evaluate.velocity_gap import measure_couplings

    given, made, params = snakemake.input, snakemake.output, snakemake.params
    measure_couplings(
        made.metrics,
        made.curves,
        params.run,
        given.student,
        given.data,
        given.teacher or None,
        params.edm,
        params.curriculum,
        params.analysis,
        params.loss,
    )
