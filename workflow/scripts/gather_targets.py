from _job import job

with job(snakemake):
    from consistency.manifest import gather
    from consistency.storage import weights_sha256

    params = snakemake.params
    settings = {"mode": snakemake.wildcards.mode, **params.condition, "count": params.n_draws, "seed": params.seed}
    teacher = weights_sha256(snakemake.input.teacher)
    gather(snakemake.output[0], snakemake.input.shards, settings, teacher)
