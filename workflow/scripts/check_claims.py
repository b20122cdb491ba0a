from _job import job

with job(snakemake):
    from consistency.report.verdicts import check

    params = snakemake.params
    check(
        dict(snakemake.output.items()),
        params.experiment,
        snakemake.input[0],
        params.runs,
        params.claims,
        margin=params.margin,
        gates=params.gates,
        replicates=params.replicates,
    )
