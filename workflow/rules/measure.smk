# Features → statistics → rows, one job a source; then all rows in one table. Data and teacher come first, since an unsound
# teacher is to be seen before students are trained.


rule measure_data:
    input:
        unpack(lambda w: plan_of(w).own_inputs),
        images=lambda w: plan_of(w).pixels,
        weights=weights_of,
        captions=lambda w: plan_of(w).captions,
    output:
        features=f"{RESULTS}/{{experiment}}/features/data.safetensors",
        metrics=f"{RESULTS}/{{experiment}}/metrics/data.json",
    log:
        f"{RESULTS}/logs/{{experiment}}/measure_data.log",
    priority: 10
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        run=lambda w: {"run": "data", "method": "data"},
        reference=lambda w: plan_of(w).reference,
        labels=lambda w: plan_of(w).labels,
        neighbours=lambda w: preset(w).evaluation.neighbours,
        extract=lambda w: plan_of(w).measuring,
        own=lambda w: plan_of(w).own_metrics,
        code=REGISTRY.built_in_code("metric"),
        settings=lambda w: {"data": dump(preset(w).data)},
        warned_of=lambda w, input: gates_of(w),
    script:
        "../scripts/measure_data.py"


rule measure_teacher:
    input:
        unpack(lambda w: plan_of(w).own_inputs),
        samples=f"{RESULTS}/{{experiment}}/samples/teacher-{{condition}}{{replicate}}.safetensors",
        data_features=f"{RESULTS}/{{experiment}}/features/data.safetensors",
        yardstick=f"{RESULTS}/{{experiment}}/metrics/data.json",
        noise=f"{RESULTS}/{{experiment}}/noise{{replicate}}.safetensors",
        weights=weights_of,
        captions=lambda w: plan_of(w).captions,
        truth=lambda w: plan_of(w).truth(w.replicate),
    output:
        features=f"{RESULTS}/{{experiment}}/features/teacher-{{condition}}{{replicate}}.safetensors",
        metrics=f"{RESULTS}/{{experiment}}/metrics/teacher-{{condition}}{{replicate}}.json",
    log:
        f"{RESULTS}/logs/{{experiment}}/measure_teacher-{{condition}}{{replicate}}.log",
    priority: 10
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        run=lambda w: plan_of(w).teacher_row(w.condition, w.replicate),
        neighbours=lambda w: preset(w).evaluation.neighbours,
        extract=lambda w: plan_of(w).measuring,
        vae=lambda w: plan_of(w).vae,
        space=lambda w: plan_of(w).space,
        own=lambda w: plan_of(w).own_metrics,
        code=REGISTRY.built_in_code("metric"),
        settings=lambda w: {"evaluation": dump(preset(w).evaluation), "schedule": dump(preset(w).schedule)},
        warned_of=lambda w, input: gates_of(w),
    script:
        "../scripts/measure_teacher.py"


rule measure_student:
    input:
        unpack(lambda w: plan_of(w).compared_with(w.run) | plan_of(w).own_inputs),
        student=f"{RESULTS}/{{experiment}}/students/{{run}}",
        samples=f"{RESULTS}/{{experiment}}/samples/{{run}}.safetensors",
        data_features=f"{RESULTS}/{{experiment}}/features/data.safetensors",
        weights=weights_of,
        captions=lambda w: plan_of(w).captions,
    output:
        features=f"{RESULTS}/{{experiment}}/features/{{run}}.safetensors",
        metrics=f"{RESULTS}/{{experiment}}/metrics/{{run}}.json",
    log:
        f"{RESULTS}/logs/{{experiment}}/measure_student-{{run}}.log",
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        run=lambda w: row_of(run_of(w)),
        truth_of=lambda w: run_of(w).flow,
        neighbours=lambda w: preset(w).evaluation.neighbours,
        extract=lambda w: plan_of(w).measuring,
        vae=lambda w: plan_of(w).vae,
        space=lambda w: plan_of(w).space,
        own=lambda w: plan_of(w).own_metrics,
        code=REGISTRY.built_in_code("metric"),
        settings=lambda w: {"evaluation": dump(preset(w).evaluation)},
    script:
        "../scripts/measure_student.py"


rule measure_couplings:
    input:
        student=f"{RESULTS}/{{experiment}}/students/{{run}}",
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
        teacher=lambda w: plan_of(w).teacher("") if plan_of(w).exact else [],
    output:
        metrics=f"{RESULTS}/{{experiment}}/metrics/couplings-{{run}}.json",
        curves=f"{RESULTS}/{{experiment}}/couplings/{{run}}.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/measure_couplings-{{run}}.log",
    conda:
        "../../envs/train.yaml"
    threads: 1
    params:
        run=lambda w: row_of(run_of(w)),
        edm=lambda w: dump(preset(w).consistency_training.edm),
        curriculum=lambda w: dump(preset(w).consistency_training.curriculum),
        analysis=lambda w: preset(w).analysis.model_dump(exclude={"order_steps", "coupling_methods"}),
        loss=lambda w: dump(preset(w).consistency_training.loss),
        code=REGISTRY.built_in_code("coupling"),
    script:
        "../scripts/measure_couplings.py"


rule measure_orders:
    input:
        teacher=f"{RESULTS}/{{experiment}}/teacher",
        noise=lambda w: plan_of(w).noise(plan_of(w).shown),
        truth=lambda w: plan_of(w).truth(plan_of(w).shown),
    output:
        f"{RESULTS}/{{experiment}}/metrics/orders.json",
    log:
        f"{RESULTS}/logs/{{experiment}}/measure_orders.log",
    conda:
        "../../envs/train.yaml"
    threads: 1
    params:
        schedule=lambda w: dump(preset(w).schedule),
        order_steps=lambda w: preset(w).analysis.order_steps,
        code=REGISTRY.built_in_code("solver"),
    script:
        "../scripts/measure_orders.py"


rule collect_metrics:
    input:
        lambda w: plan_of(w).measured,
    output:
        f"{RESULTS}/{{experiment}}/metrics.csv",
        f"{RESULTS}/{{experiment}}/metrics.csv.sha256",
    log:
        f"{RESULTS}/logs/{{experiment}}/collect_metrics.log",
    localrule: True
    conda:
        "../../envs/paper.yaml"
    params:
        experiment=lambda w: w.experiment,
    script:
        "../scripts/collect_metrics.py"
