from _job import job

with job(snakemake):
    from consistency.flow.schedules import VPSchedule
    from consistency.students import maps, sampling

    params = snakemake.params
    schedule = VPSchedule(**params.schedule)
    given = snakemake.input
    student = maps.load(given.student, given.initial, schedule, params.timestep_offset, given.prompts or None)
    noise, labels = sampling.load_noise(given.noise, student.sample_shape, params.n_samples)
    sampling.sample_student(
        snakemake.output[0],
        student,
        noise,
        labels,
        params.n_steps,
        params.sampling_steps,
        given.teacher_samples,
        params.seed,
        params.batch_size,
        params.precision,
    )
