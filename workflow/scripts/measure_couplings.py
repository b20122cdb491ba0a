from _job import job

with job(snakemake):
    from consistency.evaluate.velocity_gap import measure_couplings

    inputs, outputs, params = snakemake.input, snakemake.output, snakemake.params
    measure_couplings(
        outputs.metrics,
        outputs.curves,
        params.run,
        student_folder=inputs.student,
        data_path=inputs.data,
        teacher_folder=inputs.teacher or None,
        edm=params.edm,
        curriculum=params.curriculum,
        analysis=params.analysis,
        loss=params.loss,
    )
