# What Snakemake does again for each of thousands of jobs and time, done once. Included last, when all rules are known.
import inspect
import threading
from contextlib import suppress
from functools import cache

from snakemake.common import overwrite_function_params


def remember_signatures():
    """Snakemake asks for the signature of each function of a rule again for each job, which is a fifth of the time of a
    large dry run."""
    for known in workflow.rules:
        functions = [getattr(value, "callable", value) for value in (*known.input, *known.params)]
        for value in known.resources.values():
            functions += [getattr(value, "evaluate", None), getattr(value, "_evaluator", None)]
        for function in filter(callable, functions):
            parameters = inspect.signature(function).parameters
            overwrite_function_params(getattr(function, "__func__", function), parameters)


def one_timer():
    """Each round of Snakemake's scheduler starts a timer that brings about another round, so that there are as many
    rounds a second, and threads, as jobs have ended. Here one timer waits at a time, and none when Snakemake ends."""
    timers = []

    def schedule(scheduler, delay):
        if not timers:
            timers.append(threading.Timer(delay, lambda: (timers.clear(), scheduler._open_jobs.release())))
            timers[0].daemon = True
            timers[0].start()

    with suppress(ImportError):  # of another release
        from snakemake.scheduling.job_scheduler import JobScheduler

        JobScheduler._schedule_reevalutation = schedule


def check_once():
    """Before any job Snakemake looks for the rules that make a file, for each job that reads it, and reads a rule's
    script, for each job of the rule: together a sixth of the time of a large dry run."""
    seen = set()

    def read(processor, job):
        name, script = job.rule.name, str(job.rule.script)
        if name not in seen:
            read_script(processor, job)
        if "{" not in script:  # else it is another file for another job
            seen.add(name)

    with suppress(ImportError, AttributeError):  # of another release
        from snakemake.dag import ScriptProcessor
        from snakemake.output_index import OutputIndex

        OutputIndex.match_producers = cache(OutputIndex.match_producers)
        read_script, ScriptProcessor.process_job = ScriptProcessor.process_job, read


remember_signatures()
one_timer()
check_once()
