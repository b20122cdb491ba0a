from _job import job

with job(snakemake, network=True):
    from consistency.networks import latents

    data, megabytes = snakemake.params.data, snakemake.resources.get("download_mb")
    latents.prepare(snakemake.output.images, snakemake.output.captions, data, megabytes)
