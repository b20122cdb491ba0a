# Claims, figures, tables, report.


rule check_claims:
    input:
        f"{RESULTS}/{{experiment}}/metrics.csv",
    output:
        f"{RESULTS}/{{experiment}}/claims.csv",
    log:
        f"{RESULTS}/logs/{{experiment}}/check_claims.log",
    conda:
        "../../envs/paper.yaml"
    params:
        experiment=lambda w: w.experiment,
        runs=lambda w: group_rows(w.experiment),
        claims=lambda w: preset(w).claims,
    script:
        "../scripts/check_claims.py"


rule join_tables:
    input:
        [f"{RESULTS}/{experiment}/{{table}}.csv" for experiment in EXPERIMENTS],
    output:
        f"{RESULTS}/{{table}}.csv",
    log:
        f"{RESULTS}/logs/join_{{table}}.log",
    wildcard_constraints:
        table="metrics|claims",
    conda:
        "../../envs/paper.yaml"
    script:
        "../scripts/join_tables.py"


rule table_main:
    input:
        f"{RESULTS}/{{experiment}}/metrics.csv",
    output:
        csv=f"{RESULTS}/tables/{{experiment}}-main.csv",
        md=f"{RESULTS}/tables/{{experiment}}-main.md",
        tex=f"{RESULTS}/tables/{{experiment}}-main.tex",
        html=report(
            f"{RESULTS}/tables/{{experiment}}-main.html",
            caption="../report/table-main.rst",
            category="1. Results",
            labels={"experiment": "{experiment}", "item": "main comparison (table)"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/table_main.log",
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: group_rows(w.experiment),
        title=lambda w: preset(w).title,
    script:
        "../scripts/table_main.py"


rule table_claims:
    input:
        f"{RESULTS}/claims.csv",
    output:
        md=f"{RESULTS}/tables/claims.md",
        tex=f"{RESULTS}/tables/claims.tex",
        html=report(
            f"{RESULTS}/tables/claims.html",
            caption="../report/claims.rst",
            category="1. Results",
            labels={"experiment": "all", "item": "claims (table)"},
        ),
    log:
        f"{RESULTS}/logs/table_claims.log",
    conda:
        "../../envs/paper.yaml"
    script:
        "../scripts/table_claims.py"


# A figure is one file in workflow/consistency/figures and one rule here. Its code is an input: when
# it changes, that figure is drawn again and nothing else.


rule figure_tradeoff:
    input:
        metrics=f"{RESULTS}/{{experiment}}/metrics.csv",
        code=workflow.source_path("../consistency/figures/tradeoff.py"),
        style=workflow.source_path("../consistency/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-tradeoff.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-tradeoff.png",
            caption="../report/tradeoff.rst",
            category="1. Results",
            labels={"experiment": "{experiment}", "item": "ODE error against sample quality"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_tradeoff.log",
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: group_rows(w.experiment),
    script:
        "../scripts/figure.py"


rule figure_sampling_steps:
    input:
        metrics=f"{RESULTS}/{{experiment}}/metrics.csv",
        code=workflow.source_path("../consistency/figures/sampling_steps.py"),
        style=workflow.source_path("../consistency/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-sampling-steps.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-sampling-steps.png",
            caption="../report/sampling-steps.rst",
            category="2. Details",
            labels={"experiment": "{experiment}", "item": "quality by number of sampling steps"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_sampling_steps.log",
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: group_rows(w.experiment),
    script:
        "../scripts/figure.py"


rule figure_start_times:
    input:
        metrics=f"{RESULTS}/{{experiment}}/metrics.csv",
        code=workflow.source_path("../consistency/figures/start_times.py"),
        style=workflow.source_path("../consistency/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-start-times.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-start-times.png",
            caption="../report/start-times.rst",
            category="2. Details",
            labels={"experiment": "{experiment}", "item": "ODE error by start time"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_start_times.log",
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: group_rows(w.experiment),
    script:
        "../scripts/figure.py"


rule figure_training:
    input:
        stats=lambda w: [f"{RESULTS}/{w.experiment}/stats/{run}.jsonl" for run in RUNS[w.experiment]],
        code=workflow.source_path("../consistency/figures/training.py"),
        style=workflow.source_path("../consistency/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-training.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-training.png",
            caption="../report/training.rst",
            category="2. Details",
            labels={"experiment": "{experiment}", "item": "training curves"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_training.log",
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: group_rows(w.experiment),
    script:
        "../scripts/figure.py"


rule figure_samples:
    input:
        samples=lambda w: [f"{RESULTS}/{w.experiment}/samples/{run.run}.safetensors" for run in pictured(w.experiment)],
        teacher=lambda w: [
            f"{RESULTS}/{w.experiment}/samples/teacher-{run.condition}.safetensors" for run in pictured(w.experiment)
        ],
        noise=f"{RESULTS}/{{experiment}}/noise.safetensors",
        code=workflow.source_path("../consistency/figures/samples.py"),
        style=workflow.source_path("../consistency/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-samples.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-samples.png",
            caption="../report/samples.rst",
            category="1. Results",
            labels={"experiment": "{experiment}", "item": "samples from the same noise"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_samples.log",
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: [{"run": r.run, "method": r.method, "group": r.group} for r in pictured(w.experiment)],
    script:
        "../scripts/figure.py"


rule report:
    input:
        paper_outputs,
        captions=[
            workflow.source_path(f"../report/{name}.rst") for name in ("workflow", "claims", "table-main", *FIGURES)
        ],
    output:
        f"{RESULTS}/report.html",
    log:
        f"{RESULTS}/logs/report.log",
    localrule: True
    conda:
        "../../envs/report.yaml"
    params:
        config=dump(CONFIG),
        snakefile=lambda w: str(workflow.main_snakefile),
    script:
        "../scripts/report.py"
