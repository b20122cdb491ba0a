from _job import job

with job(snakemake):
    from consistency import models, targets

    params = snakemake.params
    settings = {"mode": snakemake.wildcards.mode, **params.condition, "count": params.n_draws, "seed": params.seed}
    teacher = models.weights_sha256(snakemake.input.teacher)
    targets.gather(snakemake.output[0], snakemake.input.shards, settings, teacher)
