from _job import job

with job(snakemake):
    from consistency.data import prepare
    from consistency.files.storage import save_tensors
    from consistency.flow import noise

    tensors, classes = prepare.load(snakemake.input.data, "np")
    shape = tensors["train_images"].shape[1:]
    params = snakemake.params
    drawn = noise.draw_noise(params.n_samples, shape, classes, params.seed, other=params.other_noises)
    save_tensors(snakemake.output[0], drawn, {"seed": params.seed})
