from _job import job

with job(snakemake):
    from consistency.networks import latents

    given, params = snakemake.input, snakemake.params
    pipeline = params.folder or given.pipeline[0]
    latents.encode_prompts(
        snakemake.output[0], given.captions, pipeline, params.side, params.batch_size, params.precision
    )
