from _job import job

with job(snakemake):
    from consistency.files.storage import weights_sha256
    from consistency.teachers.manifest import gather

    params = snakemake.params
    settings = {"mode": snakemake.wildcards.mode, **params.condition, "count": params.n_draws, "seed": params.seed}
    teacher = weights_sha256(snakemake.input.teacher)
    gather(snakemake.output[0], snakemake.input.shards, settings, teacher)
