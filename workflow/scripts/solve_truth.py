from _job import job

with job(snakemake):
    from consistency import truth
    from consistency.models.mixture import Mixture
    from consistency.storage import load_tensors

    noise = load_tensors(snakemake.input.noise, ["noise"])[0]["noise"]
    schedules = truth.schedules_of(snakemake.params.schedules)
    truth.solve(snakemake.output[0], Mixture.load(snakemake.input.teacher), noise, schedules)
