from _job import job

with job(snakemake):
    from consistency.networks import latents

    inputs, params = snakemake.input, snakemake.params
    vae = params.folder or inputs.vae[0]
    latents.encode_images(snakemake.output[0], inputs.images, vae, params.batch_size, params.precision)
