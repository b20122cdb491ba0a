# Data, feature classifier, teacher.


rule prepare_data:
    output:
        f"{RESULTS}/{{experiment}}/data.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/prepare_data.log",
    conda:
        "../../envs/train.yaml"
    params:
        data=lambda w: dump(preset(w).data),
    script:
        "../scripts/prepare_data.py"


rule train_classifier:
    input:
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
    output:
        model=directory(f"{RESULTS}/{{experiment}}/classifier"),
        stats=f"{RESULTS}/{{experiment}}/stats/classifier.jsonl",
    log:
        f"{RESULTS}/logs/{{experiment}}/train_classifier.log",
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        classifier=lambda w: dump(preset(w).classifier),
        side=f"{RESULTS}/{{experiment}}/checkpoints/classifier",
    script:
        "../scripts/train_classifier.py"


rule train_teacher:
    input:
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
    output:
        model=directory(f"{RESULTS}/{{experiment}}/teacher"),
        stats=f"{RESULTS}/{{experiment}}/stats/teacher.jsonl",
    log:
        f"{RESULTS}/logs/{{experiment}}/train_teacher.log",
    wildcard_constraints:
        experiment=with_teacher("train"),
    priority: 10
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        # timestep_offset is how the teacher is called later, not how it is trained
        teacher=lambda w: preset(w).teacher.model_dump(exclude={"timestep_offset"}),
        network=lambda w: dump(preset(w).network),
        schedule=lambda w: dump(preset(w).schedule),
        side=f"{RESULTS}/{{experiment}}/checkpoints/teacher",
    script:
        "../scripts/train_teacher.py"


rule import_teacher:
    input:
        source=lambda w: preset(w).teacher.path,
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
    output:
        model=directory(f"{RESULTS}/{{experiment}}/teacher"),
    log:
        f"{RESULTS}/logs/{{experiment}}/import_teacher.log",
    wildcard_constraints:
        experiment=with_teacher("path"),
    conda:
        "../../envs/train.yaml"
    params:
        timesteps=lambda w: preset(w).schedule.steps,
    script:
        "../scripts/import_teacher.py"


rule write_analytic_teacher:
    output:
        model=directory(f"{RESULTS}/{{experiment}}/teacher"),
    log:
        f"{RESULTS}/logs/{{experiment}}/write_analytic_teacher.log",
    wildcard_constraints:
        experiment=with_teacher("analytic"),
    conda:
        "../../envs/train.yaml"
    params:
        data=lambda w: dump(preset(w).data),
    script:
        "../scripts/write_analytic_teacher.py"


# A closed form has no weights to start a student from: a network is trained on the same data for that.


rule train_initial:
    input:
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
    output:
        model=directory(f"{RESULTS}/{{experiment}}/initial"),
        stats=f"{RESULTS}/{{experiment}}/stats/initial.jsonl",
    log:
        f"{RESULTS}/logs/{{experiment}}/train_initial.log",
    wildcard_constraints:
        experiment=with_teacher("analytic"),
    priority: 10
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        # timestep_offset is how the teacher is called later, not how it is trained
        teacher=lambda w: preset(w).teacher.model_dump(exclude={"timestep_offset"}),
        network=lambda w: dump(preset(w).network),
        schedule=lambda w: dump(preset(w).schedule),
        side=f"{RESULTS}/{{experiment}}/checkpoints/initial",
    script:
        "../scripts/train_teacher.py"
