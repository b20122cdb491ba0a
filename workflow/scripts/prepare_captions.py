from _job import job

with job(snakemake, network=True):
    from consistency import latents

    latents.prepare(snakemake.output.images, snakemake.output.captions, snakemake.params.data)
