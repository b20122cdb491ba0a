# Before anything is called up to date, each output's record is compared with the plan (consistency/files/records.py); what does
# not match is made again. Included when all rules exist.
import inspect

from _job import CODE, shared
from consistency.files import records

REASONS = set()
identify = cache(records.identity)


def compared_with_its_record(made_by):
    """A function for the input of a rule, since Snakemake calls it for each of its jobs, in dry runs too, before it decides
    which of them to run. It adds no input."""
    asked = []

    def settings(wildcards):
        planned = {}
        for name, value in made_by.params.items():
            if callable(value):
                if list(inspect.signature(value).parameters) in (["w"], ["wildcards"]):
                    planned[name] = value(wildcards)
            elif not (isinstance(value, str) and "{" in value):
                planned[name] = value
        return planned

    def compare(wildcards):
        if asked:  # by itself, for the other inputs
            return []
        values = dict(wildcards.items())
        outputs, _ = made_by.expand_output(values)
        files = {shared(str(path)): path for path in outputs}

        def inputs():
            asked.append(True)
            try:
                return [shared(str(path)) for path in made_by.expand_input(values)[0] if CODE not in path]
            finally:
                asked.clear()

        def tracked(path):
            return workflow.persistence.metadata(files.get(path) or IOFile(path)) is not None

        names = set(made_by.params.keys())
        why = records.why_stale(
            list(files),
            made_by.name,
            lambda: settings(wildcards),
            names,
            inputs,
            tracked=tracked,
            identify=identify,
        )
        if why:
            workflow.dag.forcefiles.update(outputs)
            if (made_by.name, why) not in REASONS:
                REASONS.add((made_by.name, why))
                logger.info(f"made again: {next(iter(files))}: {why}")
        return []

    return compare


if not (workflow.remote_exec or workflow.subprocess_exec):  # inside of a job
    for each in workflow.rules:
        if each.basedir != HERE:  # of the workflow that uses this one
            continue
        if each.script:
            each.set_input(compared_with_its_record(each))
        # Snakemake asks for a function's signature several times a job, which takes a second of a dry run of 1,000 runs.
        for value in (*each.input, *each.params, memory, gpus, minutes):
            if callable(function := getattr(value, "callable", value)):
                function.__signature__ = inspect.signature(function)
