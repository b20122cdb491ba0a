from _job import job

with job(snakemake):
    from consistency import latents

    given, params = snakemake.input, snakemake.params
    latents.encode_images(snakemake.output[0], given.images, given.vae, params.batch_size, params.precision)
