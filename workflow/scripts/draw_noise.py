from _job import job

with job(snakemake):
    from consistency.data import prepare
    from consistency.files.storage import save_tensors
    from consistency.flow import noise

    tensors, classes = prepare.load(snakemake.input.data, "np")
    shape = tensors["train_images"].shape[1:]
    drawn = noise.draw_noise(snakemake.params.n_samples, shape, classes, snakemake.params.seed)
    save_tensors(snakemake.output[0], drawn, {"seed": snakemake.params.seed})
