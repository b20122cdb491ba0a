# Claims, tables, figures: seconds each, so local on a cluster too.


rule check_claims:
    input:
        f"{RESULTS}/{{experiment}}/metrics.csv",
    output:
        table=f"{RESULTS}/{{experiment}}/claims.csv",
        digest=f"{RESULTS}/{{experiment}}/claims.csv.sha256",
        definitions=f"{RESULTS}/{{experiment}}/claims.json",
    log:
        f"{RESULTS}/logs/{{experiment}}/check_claims.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        experiment=lambda w: w.experiment,
        runs=lambda w: plan_of(w).rows,
        claims=lambda w: [dump(claim) for claim in preset(w).claims],
        margin=lambda w: preset(w).margin,
        gates=lambda w: gates_of(w),
        replicates=lambda w: preset(w).replicates,
    script:
        "../scripts/check_claims.py"


rule join_tables:
    input:
        [f"{RESULTS}/{experiment}/{{table}}.csv" for experiment in EXPERIMENTS],
    output:
        f"{RESULTS}/{{table}}.csv",
        f"{RESULTS}/{{table}}.csv.sha256",
    log:
        f"{RESULTS}/logs/join_{{table}}.log",
    wildcard_constraints:
        table="metrics|claims",
    localrule: True
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
            category="2. Results",
            subcategory="{experiment}",
            labels={"item": "main comparison (table)"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/table_main.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: plan_of(w).rows,
        title_json=lambda w: as_json(preset(w).title),
    script:
        "../scripts/table_main.py"


rule table_couplings:
    input:
        f"{RESULTS}/{{experiment}}/metrics.csv",
    output:
        csv=f"{RESULTS}/tables/{{experiment}}-couplings.csv",
        md=f"{RESULTS}/tables/{{experiment}}-couplings.md",
        tex=f"{RESULTS}/tables/{{experiment}}-couplings.tex",
        html=report(
            f"{RESULTS}/tables/{{experiment}}-couplings.html",
            caption="../report/table-couplings.rst",
            category="2. Results",
            subcategory="{experiment}",
            labels={"item": "couplings (table)"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/table_couplings.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: plan_of(w).rows_from_pairs,
        title_json=lambda w: as_json(preset(w).title),
        data=lambda w: preset(w).data_set,
    script:
        "../scripts/table_couplings.py"


rule table_claims:
    input:
        table=f"{RESULTS}/claims.csv",
        definitions=[f"{RESULTS}/{experiment}/claims.json" for experiment in EXPERIMENTS],
    output:
        md=f"{RESULTS}/tables/claims.md",
        tex=f"{RESULTS}/tables/claims.tex",
        html=report(
            f"{RESULTS}/tables/claims.html",
            caption="../report/claims.rst",
            category="1. Claims",
            labels={"item": "do the claims hold? (table)"},
        ),
    log:
        f"{RESULTS}/logs/table_claims.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    script:
        "../scripts/table_claims.py"


# A figure is one file in workflow/consistency/report/figures, one line here and a caption in workflow/report. Its code is an
# input: when it changes, that figure is drawn again and nothing else.
# Name: item and category in the report; the rows that it shows, and its inputs, both of the experiment's plan.
FIGURES = {
    "forest": (
        "every condition of every claim",
        "2. Results",
        lambda plan: plan.rows,
        lambda plan: {"table": f"{plan.folder}/claims.csv", "definitions": f"{plan.folder}/claims.json"},
    ),
    "tradeoff": (
        "ODE error against sample quality",
        "2. Results",
        lambda plan: plan.rows_from_targets,
        lambda plan: {"metrics": plan.metrics},
    ),
    "sampling-steps": (
        "quality by number of sampling steps",
        "4. Details",
        lambda plan: plan.rows_from_targets,
        lambda plan: {"metrics": plan.metrics},
    ),
    "start-times": (
        "ODE error by start time",
        "4. Details",
        lambda plan: plan.rows_from_targets,
        lambda plan: {"metrics": plan.metrics},
    ),
    "training": (
        "training curves",
        "4. Details",
        lambda plan: plan.rows_from_targets,
        lambda plan: {"stats": plan.stats(plan.from_targets)},
    ),
    "samples": (
        "samples from the same noise",
        "2. Results",
        lambda plan: plan.rows_pictured,
        lambda plan: {
            "samples": plan.pictures(plan.pictured),
            "teacher": plan.pictures(plan.teachers(plan.pictured)),
            "noise": plan.noise(plan.shown),
        },
    ),
    "points": (
        "samples from the same noise",
        "2. Results",
        lambda plan: plan.rows_pictured,
        lambda plan: {
            "samples": plan.samples(plan.pictured),
            "teacher": plan.samples(plan.teachers(plan.pictured)),
            "truth": plan.truth(plan.shown),
            "data": f"{plan.folder}/data.safetensors",
        },
    ),
    "convergence": (
        "convergence of consistency training",
        "2. Results",
        lambda plan: plan.rows_from_pairs,
        lambda plan: {"metrics": plan.metrics, "stats": plan.stats(plan.from_pairs)},
    ),
    "share": (
        "quality by share of generated pairs",
        "4. Details",
        lambda plan: plan.rows_from_pairs,
        lambda plan: {"metrics": plan.metrics},
    ),
    "velocity-variance": (
        "variance of the velocity by coupling",
        "2. Results",
        lambda plan: plan.rows_analysed,
        lambda plan: {"metrics": plan.metrics},
    ),
    "discrepancy": (
        "gap between training and distillation",
        "2. Results",
        lambda plan: plan.rows_analysed,
        lambda plan: {"metrics": plan.metrics},
    ),
    "transport": (
        "transport cost by noise level",
        "2. Results",
        lambda plan: plan.rows_analysed,
        lambda plan: {"metrics": plan.metrics},
    ),
    "trajectories": (
        "trajectories of the couplings",
        "2. Results",
        lambda plan: plan.rows_analysed,
        lambda plan: {"curves": f"{plan.folder}/couplings/{plan.analysed[0]}.safetensors"},
    ),
    "orders": (
        "discretisation error of the solvers",
        "4. Details",
        lambda plan: plan.rows,
        lambda plan: {"metrics": plan.metrics},
    ),
}
for figure, (item, category, rows, inputs) in FIGURES.items():
    code = figure.replace("-", "_")

    rule:
        name:
            f"figure_{code}"
        input:
            unpack(of_plan(inputs)),
            code=workflow.source_path(f"../consistency/report/figures/{code}.py"),
            style=workflow.source_path("../consistency/report/figures/style.py"),
        output:
            pdf=f"{RESULTS}/figures/{{experiment}}-{figure}.pdf",
            png=report(
                f"{RESULTS}/figures/{{experiment}}-{figure}.png",
                caption=f"../report/{figure}.rst",
                category=category,
                subcategory="{experiment}",
                labels={"item": item},
            ),
        log:
            f"{RESULTS}/logs/{{experiment}}/figure_{code}.log",
        localrule: True
        conda:
            "../../envs/paper.yaml"
        params:
            runs=of_plan(rows),
        script:
            "../scripts/figure.py"


# Figures of the user's own, functions of the files in `plugins`.
rule figure_own:
    input:
        metrics=of_plan(lambda plan: plan.metrics),
        code=workflow.source_path("../consistency/report/figures/own.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-{{own}}.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-{{own}}.png",
            caption="../report/own.rst",
            category="2. Results",
            subcategory="{experiment}",
            labels={"item": "{own}"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_own-{{own}}.log",
    wildcard_constraints:
        own=pattern(name for planned in PLANS.values() for name in planned.own_figures),
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=of_plan(lambda plan: plan.rows),
        own_json=lambda w: as_json(plan_of(w).own_figures[w.own]),
    script:
        "../scripts/figure.py"
