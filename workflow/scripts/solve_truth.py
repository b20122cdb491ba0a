from _job import job

with job(snakemake):
    from consistency.files.storage import load_tensors
    from consistency.networks.mixture import Mixture
    from consistency.teachers import truth

    noise = load_tensors(snakemake.input.noise, ["noise"])[0]["noise"]
    flows = truth.flows_of(snakemake.params.flows)
    truth.solve(snakemake.output[0], Mixture.load(snakemake.input.teacher), noise, flows)
