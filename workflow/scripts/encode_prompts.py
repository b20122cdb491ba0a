from _job import job

with job(snakemake):
    from consistency import latents

    given, params = snakemake.input, snakemake.params
    latents.encode_prompts(
        snakemake.output[0], given.captions, given.pipeline, params.side, params.batch_size, params.precision
    )
