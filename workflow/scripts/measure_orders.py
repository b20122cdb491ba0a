from _job import job

with job(snakemake):
    from consistency.evaluate.orders import measure_orders
    from consistency.flow.schedules import VPSchedule

    inputs, params = snakemake.input, snakemake.params
    schedule = VPSchedule(**params.schedule)
    measure_orders(snakemake.output[0], inputs.teacher, inputs.noise, inputs.truth, schedule, params.order_steps)
