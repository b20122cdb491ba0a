# Features → statistics → rows, one job a source; then all rows in one table.


rule measure_data:
    input:
        images=f"{RESULTS}/{{experiment}}/data.safetensors",
        classifier=f"{RESULTS}/{{experiment}}/classifier",
    output:
        features=f"{RESULTS}/{{experiment}}/features/data.safetensors",
        metrics=f"{RESULTS}/{{experiment}}/metrics/data.json",
    log:
        f"{RESULTS}/logs/{{experiment}}/measure_data.log",
    conda:
        "../../envs/train.yaml"
    params:
        run=lambda w: {"run": "data", "method": "data"},
        neighbours=lambda w: preset(w).evaluation.neighbours,
        batch_size=lambda w: preset(w).evaluation.batch_size,
        settings=lambda w: {"data": dump(preset(w).data)},
    script:
        "../scripts/measure_data.py"


rule measure_teacher:
    input:
        samples=f"{RESULTS}/{{experiment}}/samples/teacher-{{condition}}.safetensors",
        data_features=f"{RESULTS}/{{experiment}}/features/data.safetensors",
        noise=f"{RESULTS}/{{experiment}}/noise.safetensors",
        classifier=f"{RESULTS}/{{experiment}}/classifier",
    output:
        features=f"{RESULTS}/{{experiment}}/features/teacher-{{condition}}.safetensors",
        metrics=f"{RESULTS}/{{experiment}}/metrics/teacher-{{condition}}.json",
    log:
        f"{RESULTS}/logs/{{experiment}}/measure_teacher-{{condition}}.log",
    conda:
        "../../envs/train.yaml"
    params:
        run=lambda w: {"run": f"teacher-{w.condition}", "method": "teacher", **condition_of(w)},
        neighbours=lambda w: preset(w).evaluation.neighbours,
        batch_size=lambda w: preset(w).evaluation.batch_size,
        settings=lambda w: {"evaluation": dump(preset(w).evaluation), "schedule": dump(preset(w).schedule)},
    script:
        "../scripts/measure_teacher.py"


rule measure_student:
    input:
        student=f"{RESULTS}/{{experiment}}/students/{{run}}",
        samples=f"{RESULTS}/{{experiment}}/samples/{{run}}.safetensors",
        teacher_samples=lambda w: f"{RESULTS}/{w.experiment}/samples/teacher-{run_of(w).condition}.safetensors",
        teacher_features=lambda w: f"{RESULTS}/{w.experiment}/features/teacher-{run_of(w).condition}.safetensors",
        data_features=f"{RESULTS}/{{experiment}}/features/data.safetensors",
        noise=f"{RESULTS}/{{experiment}}/noise.safetensors",
        classifier=f"{RESULTS}/{{experiment}}/classifier",
    output:
        features=f"{RESULTS}/{{experiment}}/features/{{run}}.safetensors",
        metrics=f"{RESULTS}/{{experiment}}/metrics/{{run}}.json",
    log:
        f"{RESULTS}/logs/{{experiment}}/measure_student-{{run}}.log",
    conda:
        "../../envs/train.yaml"
    params:
        run=lambda w: row_of(run_of(w)),
        neighbours=lambda w: preset(w).evaluation.neighbours,
        batch_size=lambda w: preset(w).evaluation.batch_size,
        settings=lambda w: {"evaluation": dump(preset(w).evaluation)},
    script:
        "../scripts/measure_student.py"


rule collect_metrics:
    input:
        lambda w: [f"{RESULTS}/{w.experiment}/metrics/{source}.json" for source in sources_of(w.experiment)],
    output:
        f"{RESULTS}/{{experiment}}/metrics.csv",
    log:
        f"{RESULTS}/logs/{{experiment}}/collect_metrics.log",
    conda:
        "../../envs/paper.yaml"
    params:
        experiment=lambda w: w.experiment,
    script:
        "../scripts/collect_metrics.py"
