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
        runs=lambda w: group_rows(w.experiment),
        claims=lambda w: [dump(claim) for claim in preset(w).claims],
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
        runs=lambda w: group_rows(w.experiment),
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
        runs=lambda w: pairs_rows(w.experiment),
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


# A figure is one file in workflow/consistency/report/figures and one rule here. Its code is an input: when
# it changes, that figure is drawn again and nothing else.


rule figure_tradeoff:
    input:
        metrics=f"{RESULTS}/{{experiment}}/metrics.csv",
        code=workflow.source_path("../consistency/report/figures/tradeoff.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-tradeoff.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-tradeoff.png",
            caption="../report/tradeoff.rst",
            category="2. Results",
            subcategory="{experiment}",
            labels={"item": "ODE error against sample quality"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_tradeoff.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: group_rows(w.experiment, FROM_TARGETS),
    script:
        "../scripts/figure.py"


rule figure_sampling_steps:
    input:
        metrics=f"{RESULTS}/{{experiment}}/metrics.csv",
        code=workflow.source_path("../consistency/report/figures/sampling_steps.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-sampling-steps.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-sampling-steps.png",
            caption="../report/sampling-steps.rst",
            category="4. Details",
            subcategory="{experiment}",
            labels={"item": "quality by number of sampling steps"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_sampling_steps.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: group_rows(w.experiment, FROM_TARGETS),
    script:
        "../scripts/figure.py"


rule figure_start_times:
    input:
        metrics=f"{RESULTS}/{{experiment}}/metrics.csv",
        code=workflow.source_path("../consistency/report/figures/start_times.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-start-times.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-start-times.png",
            caption="../report/start-times.rst",
            category="4. Details",
            subcategory="{experiment}",
            labels={"item": "ODE error by start time"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_start_times.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: group_rows(w.experiment, FROM_TARGETS),
    script:
        "../scripts/figure.py"


rule figure_training:
    input:
        stats=lambda w: [f"{RESULTS}/{w.experiment}/stats/{run}.jsonl" for run in FROM_TARGETS[w.experiment]],
        code=workflow.source_path("../consistency/report/figures/training.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-training.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-training.png",
            caption="../report/training.rst",
            category="4. Details",
            subcategory="{experiment}",
            labels={"item": "training curves"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_training.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: group_rows(w.experiment, FROM_TARGETS),
    script:
        "../scripts/figure.py"


rule figure_samples:
    input:
        samples=lambda w: pictures_of(w, [run.run for run in pictured(w.experiment)]),
        teacher=lambda w: pictures_of(w, [f"teacher-{run.condition}" for run in pictured(w.experiment)]),
        noise=f"{RESULTS}/{{experiment}}/noise.safetensors",
        code=workflow.source_path("../consistency/report/figures/samples.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-samples.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-samples.png",
            caption="../report/samples.rst",
            category="2. Results",
            subcategory="{experiment}",
            labels={"item": "samples from the same noise"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_samples.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: [{"run": r.run, "method": r.method, "group": r.group} for r in pictured(w.experiment)],
    script:
        "../scripts/figure.py"


rule figure_points:
    input:
        samples=lambda w: [f"{RESULTS}/{w.experiment}/samples/{run.run}.safetensors" for run in pictured(w.experiment)],
        teacher=lambda w: [
            f"{RESULTS}/{w.experiment}/samples/teacher-{run.condition}.safetensors" for run in pictured(w.experiment)
        ],
        truth=truth_of,
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
        code=workflow.source_path("../consistency/report/figures/points.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-points.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-points.png",
            caption="../report/points.rst",
            category="2. Results",
            subcategory="{experiment}",
            labels={"item": "samples from the same noise"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_points.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: [{"run": r.run, "method": r.method, "group": r.group} for r in pictured(w.experiment)],
    script:
        "../scripts/figure.py"


rule figure_convergence:
    input:
        metrics=f"{RESULTS}/{{experiment}}/metrics.csv",
        stats=lambda w: [f"{RESULTS}/{w.experiment}/stats/{run}.jsonl" for run in FROM_PAIRS[w.experiment]],
        code=workflow.source_path("../consistency/report/figures/convergence.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-convergence.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-convergence.png",
            caption="../report/convergence.rst",
            category="2. Results",
            subcategory="{experiment}",
            labels={"item": "convergence of consistency training"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_convergence.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: pairs_rows(w.experiment),
    script:
        "../scripts/figure.py"


rule figure_share:
    input:
        metrics=f"{RESULTS}/{{experiment}}/metrics.csv",
        code=workflow.source_path("../consistency/report/figures/share.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-share.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-share.png",
            caption="../report/share.rst",
            category="4. Details",
            subcategory="{experiment}",
            labels={"item": "quality by share of generated pairs"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_share.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: pairs_rows(w.experiment),
    script:
        "../scripts/figure.py"


rule figure_discrepancy:
    input:
        metrics=f"{RESULTS}/{{experiment}}/metrics.csv",
        code=workflow.source_path("../consistency/report/figures/discrepancy.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-discrepancy.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-discrepancy.png",
            caption="../report/discrepancy.rst",
            category="2. Results",
            subcategory="{experiment}",
            labels={"item": "gap between training and distillation"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_discrepancy.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: [row for row in pairs_rows(w.experiment) if row["run"] in analysed(w.experiment)],
    script:
        "../scripts/figure.py"


rule figure_transport:
    input:
        metrics=f"{RESULTS}/{{experiment}}/metrics.csv",
        code=workflow.source_path("../consistency/report/figures/transport.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-transport.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-transport.png",
            caption="../report/transport.rst",
            category="2. Results",
            subcategory="{experiment}",
            labels={"item": "transport cost by noise level"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_transport.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: [row for row in pairs_rows(w.experiment) if row["run"] in analysed(w.experiment)],
    script:
        "../scripts/figure.py"


rule figure_trajectories:
    input:
        curves=lambda w: f"{RESULTS}/{w.experiment}/couplings/{analysed(w.experiment)[0]}.safetensors",
        code=workflow.source_path("../consistency/report/figures/trajectories.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-trajectories.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-trajectories.png",
            caption="../report/trajectories.rst",
            category="2. Results",
            subcategory="{experiment}",
            labels={"item": "trajectories of the couplings"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_trajectories.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: [row for row in pairs_rows(w.experiment) if row["run"] in analysed(w.experiment)],
    script:
        "../scripts/figure.py"


rule figure_orders:
    input:
        metrics=f"{RESULTS}/{{experiment}}/metrics.csv",
        code=workflow.source_path("../consistency/report/figures/orders.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}-orders.pdf",
        png=report(
            f"{RESULTS}/figures/{{experiment}}-orders.png",
            caption="../report/orders.rst",
            category="4. Details",
            subcategory="{experiment}",
            labels={"item": "discretisation error of the solvers"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/figure_orders.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs=lambda w: group_rows(w.experiment),
    script:
        "../scripts/figure.py"
