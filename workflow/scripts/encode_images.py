from _job import job

with job(snakemake):
    from consistency.networks import latents

    given, params = snakemake.input, snakemake.params
    vae = params.folder or given.vae[0]
    latents.encode_images(snakemake.output[0], given.images, vae, params.batch_size, params.precision)
