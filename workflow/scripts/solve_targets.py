from _job import job

with job(snakemake):
    from consistency.config.shards import shard_range
    from consistency.data import prepare
    from consistency.flow.schedules import VPSchedule
    from consistency.teachers import targets
    from consistency.teachers.protocol import Teacher

    params, options = snakemake.params, snakemake.params.targets
    tensors, classes = prepare.load(snakemake.input.data)
    images, labels = tensors["train_images"], tensors["train_labels"]
    teacher = Teacher.load(
        snakemake.input.teacher,
        VPSchedule(**params.schedule),
        params.timestep_offset,
        images.shape[1:],
        classes,
        prompts=snakemake.input.prompts or None,
        precision=params.precision,
        compiled=params.compile,
    )
    targets.solve_shard(
        snakemake.output[0],
        teacher,
        images,
        labels,
        numbers=shard_range(options["count"], options["shards"], int(snakemake.wildcards.shard)),
        mode=snakemake.wildcards.mode,
        **params.condition,
        seed=options["seed"],
        batch_size=options["batch_size"],
    )
