from _job import job

with job(snakemake):
    from consistency.metrics.orders import measure_orders
    from consistency.schedules import VPSchedule

    given, params = snakemake.input, snakemake.params
    schedule = VPSchedule(**params.schedule)
    measure_orders(snakemake.output[0], given.teacher, given.noise, given.truth, schedule, params.order_steps)
