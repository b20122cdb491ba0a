from _job import job

with job(snakemake, network=True):
    from consistency.data.fetch import hub

    hub.obtain(snakemake.output[0], snakemake.params.source, snakemake.resources.get("download_mb"))
