from _job import job

with job(snakemake):
    from consistency.flow.schedules import VESchedule
    from consistency.students import maps, sampling

    params, folder = snakemake.params, snakemake.input.student
    edm = VESchedule(**params.edm)
    names = [maps.budget_name(budget) for budget in params.budgets]
    loaded = {"final": maps.load_edm(folder, edm)} | {name: maps.load_edm(folder, edm, name) for name in names}
    shape = loaded["final"].sample_shape
    noise, labels = sampling.load_noise(snakemake.input.noise, shape, params.n_samples)
    sampling.sample_pairs_student(
        snakemake.output[0],
        loaded,
        noise,
        labels,
        params.sampling_steps,
        params.seed,
        params.batch_size,
        params.precision,
    )
