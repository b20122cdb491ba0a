# When jobs are forked from one process, which jobs, and what they import. README.md says why and how.
from itertools import islice

sys.path.append(str(WORKFLOW / "warm"))
import warm_server


def start_jobs_warm():
    """Start the process where this snakemake runs more than a few jobs on this machine, in its own environment, and as
    scripts."""
    inside = workflow.remote_exec or workflow.subprocess_exec  # of a job
    if not workflow.local_exec or inside or workflow.deployment_settings.deployment_method:
        return
    # What stands before a script's command would break `cd … && …`.
    commands = any(rule.shellcmd or rule.is_run for rule in workflow.rules)
    if commands or Path(shell.get_executable() or "").name != "bash":
        return
    many = len(list(islice(workflow.dag.needrun_jobs(), 5))) == 5
    if many and (client := warm_server.start(scripts_that_fork(), *imports())):
        shell.prefix(f"set -euo pipefail; {client.replace('{', '{{').replace('}', '}}')} ")


def scripts_that_fork():
    """Names of this workflow's scripts whose jobs may run in a fork. Jobs that use a GPU may not, as CUDA wants a fresh
    process, nor jobs that download, as the hub's client is imported offline; nor scripts that a user adds."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (WORKFLOW / "scripts").glob("*.py")}
    names = {name for name, text in texts.items() if "\nfrom _job import " in f"\n{text}"}
    afresh = {"download_mb", *["gpu"] * any(experiment.gpu for experiment in EXPERIMENTS.values())}
    for each in workflow.rules:
        folder, _, name = str(each.script).rpartition("/")
        if folder != "../scripts" or afresh & each.resources.keys():
            names.discard(name)
    return sorted(names)


def imports():
    """What jobs of these experiments import that others do without."""
    modules = {"diffusers.models.unets.unet_2d" for e in EXPERIMENTS.values() if e.network.kind == "unet"}
    modules |= {"peft" for planned in PLANS.values() for run in planned.runs.values() if run.parameters == "lora"}
    return ["consistency.runtime.compat:ensure_torchvision", *sorted(modules)] if modules else []
