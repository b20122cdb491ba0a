from _job import job

with job(snakemake):
    from consistency.networks import latents

    inputs, params = snakemake.input, snakemake.params
    pipeline = params.folder or inputs.pipeline[0]
    latents.encode_prompts(
        snakemake.output[0], inputs.captions, pipeline, params.side, params.batch_size, params.precision
    )
