from _job import job

with job(snakemake):
    from consistency import sampling, students
    from consistency.schedules import VPSchedule

    params = snakemake.params
    schedule = VPSchedule(**params.schedule)
    student = students.load(snakemake.input.student, snakemake.input.initial, schedule, params.timestep_offset)
    noise, labels = sampling.load_noise(snakemake.input.noise, student.sample_shape, params.n_samples)
    sampling.sample_student(
        snakemake.output[0],
        student,
        noise,
        labels,
        params.n_steps,
        params.sampling_steps,
        snakemake.input.teacher_samples,
        params.seed,
        params.batch_size,
    )
