from _job import job

with job(snakemake):
    from consistency import truth
    from consistency.metrics.orders import refined
    from consistency.models.mixture import Mixture
    from consistency.schedules import VESchedule, VPSchedule
    from consistency.storage import load_tensors

    make = {
        "vp": lambda options: VPSchedule(**options),
        "vp_refined": lambda options: refined(VPSchedule(**options)),
        "ve": lambda options: VESchedule(**options),
    }
    schedules = {name: make[name](options) for name, options in snakemake.params.schedules.items()}
    noise = load_tensors(snakemake.input.noise, ["noise"])[0]["noise"]
    truth.solve(snakemake.output[0], Mixture.load(snakemake.input.teacher), noise, schedules)
