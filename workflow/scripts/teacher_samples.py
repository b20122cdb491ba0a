from _job import job

with job(snakemake):
    from consistency.data import prepare
    from consistency.files.storage import load_tensors
    from consistency.flow.schedules import VPSchedule
    from consistency.students import sampling
    from consistency.teachers.protocol import Teacher

    params = snakemake.params
    tensors, classes = prepare.load(snakemake.input.data)
    shape = tensors["train_images"].shape[1:]
    teacher = Teacher.load(
        snakemake.input.teacher,
        VPSchedule(**params.schedule),
        params.timestep_offset,
        shape,
        classes,
        prompts=snakemake.input.prompts or None,
        precision=params.precision,
        compiled=params.compile,
    )
    noise, labels = sampling.load_noise(snakemake.input.noise, shape, params.n_samples)
    sampling.sample_teacher(
        snakemake.output[0],
        teacher,
        noise,
        labels,
        **params.condition,
        starts=params.starts,
        batch_size=params.batch_size,
        other_noise=load_tensors(snakemake.input.noise, check=False)[0].get("other_noise"),
    )
