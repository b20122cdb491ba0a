from _job import job

with job(snakemake):
    from consistency import truth
    from consistency.metrics.orders import refined
    from consistency.models.mixture import Mixture
    from consistency.schedules import VESchedule, VPSchedule
    from consistency.storage import load_tensors

    vp = VPSchedule(**snakemake.params.schedule)
    schedules = {"vp": vp, "vp_refined": refined(vp), "ve": VESchedule(**snakemake.params.edm)}
    noise = load_tensors(snakemake.input.noise, ["noise"])[0]["noise"]
    truth.solve(snakemake.output[0], Mixture.load(snakemake.input.teacher), noise, schedules)
