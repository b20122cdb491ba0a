# Interactive pages, and the report that holds everything.

# A page is one file in workflow/consistency/report/pages with its template, and one rule here. Both are inputs: when one
# changes, that page is made again and no other.


rule page_samples:
    input:
        samples=lambda w: plan_of(w).samples(row["source"] for row in plan_of(w).compared),
        pictures=lambda w: plan_of(w).pictures(row["source"] for row in plan_of(w).compared),
        noise=lambda w: plan_of(w).noise(plan_of(w).shown),
        truth=lambda w: plan_of(w).truth(plan_of(w).shown),
        captions=lambda w: plan_of(w).captions,
        code=workflow.source_path("../consistency/report/pages/samples.py"),
        template=workflow.source_path("../consistency/report/pages/samples.html"),
        shell=workflow.source_path("../consistency/report/pages/shell.py"),
    output:
        report(
            f"{RESULTS}/pages/{{experiment}}-samples.html",
            caption="../report/page-samples.rst",
            category="3. Explore",
            subcategory="{experiment}",
            labels={"item": "samples side by side (interactive)"},
        ),
    log:
        f"{RESULTS}/logs/{{experiment}}/page_samples.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        rows=lambda w: plan_of(w).compared,
        title_json=lambda w: as_json(preset(w).title),
    script:
        "../scripts/page.py"


rule page_tradeoff:
    input:
        metrics=f"{RESULTS}/metrics.csv",
        code=workflow.source_path("../consistency/report/pages/tradeoff.py"),
        template=workflow.source_path("../consistency/report/pages/tradeoff.html"),
        shell=workflow.source_path("../consistency/report/pages/shell.py"),
        style=workflow.source_path("../consistency/report/figures/style.py"),
    output:
        report(
            f"{RESULTS}/pages/tradeoff.html",
            caption="../report/page-tradeoff.rst",
            category="3. Explore",
            subcategory="all experiments",
            labels={"item": "ODE error against sample quality (interactive)"},
        ),
    log:
        f"{RESULTS}/logs/page_tradeoff.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        runs={name: PLANS[name].rows for name in EXPERIMENTS},
        titles_json=lambda w: as_json({name: e.title for name, e in EXPERIMENTS.items()}),
    script:
        "../scripts/page.py"


rule report:
    input:
        paper_outputs,
        captions=[
            workflow.source_path(f"../report/{path.name}") for path in sorted((WORKFLOW / "report").glob("*.rst"))
        ],
        stylesheet=workflow.source_path("../report/report.css"),
        frames=workflow.source_path("../report/frames.js"),
    output:
        f"{RESULTS}/report.html",
    log:
        f"{RESULTS}/logs/report.log",
    localrule: True
    conda:
        "../../envs/report.yaml"
    params:
        # as a module: of the workflow that uses it
        target=workflow.modifier.modify_rulename("paper"),
        config=lambda w: addresses.hide(workflow.config),
        snakefile=lambda w: os.path.relpath(workflow.main_snakefile),  # a checkout may be moved
    script:
        "../scripts/report.py"
