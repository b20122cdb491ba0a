# Students: one job a row of the table of runs.


rule train_student:
    input:
        unpack(lambda w: plan_of(w).inputs_of_training(w.run)),
        teacher=f"{RESULTS}/{{experiment}}/teacher",
        initial=lambda w: plan_of(w).initial,
        prompts=lambda w: plan_of(w).prompts,
    output:
        model=directory(f"{RESULTS}/{{experiment}}/students/{{run}}"),
        stats=f"{RESULTS}/{{experiment}}/stats/{{run}}.jsonl",
    log:
        f"{RESULTS}/logs/{{experiment}}/train_student-{{run}}.log",
    wildcard_constraints:
        run=pattern(run for planned in PLANS.values() for run in planned.from_targets),
    conda:
        "../../envs/train.yaml"
    threads: lambda w: preset(w).student.training.threads
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        run=lambda w: row_of(run_of(w)),
        objective=lambda w: run_of(w).objective,
        parameters=lambda w: run_of(w).parameters,
        loss=lambda w: dump(run_of(w).loss),
        lora_rank=lambda w: preset(w).student.lora_rank if run_of(w).parameters == "lora" else None,
        training=lambda w: dump(preset(w).student.training),
        schedule=lambda w: dump(preset(w).schedule),
        timestep_offset=lambda w: preset(w).teacher.timestep_offset,
    script:
        "../scripts/train_student.py"


rule train_pairs_student:
    input:
        unpack(lambda w: plan_of(w).inputs_of_training(w.run)),
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
    output:
        model=directory(f"{RESULTS}/{{experiment}}/students/{{run}}"),
        stats=f"{RESULTS}/{{experiment}}/stats/{{run}}.jsonl",
    log:
        f"{RESULTS}/logs/{{experiment}}/train_pairs_student-{{run}}.log",
    wildcard_constraints:
        run=pattern(run for planned in PLANS.values() for run in planned.from_pairs),
    priority: 3
    conda:
        "../../envs/train.yaml"
    threads: lambda w: preset(w).consistency_training.training.threads
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        run=lambda w: row_of(run_of(w)),
        objective=lambda w: run_of(w).objective,
        coupling=lambda w: dump(run_of(w).coupling),
        velocity=lambda w: run_of(w).velocity,
        network=lambda w: plan_of(w).network(w.run),
        options=lambda w: dump(preset(w).consistency_training) | {"loss": dump(run_of(w).loss)},
        schedule=lambda w: dump(preset(w).schedule) if plan_of(w).asks_a_network(w.run) else None,
        timestep_offset=lambda w: preset(w).teacher.timestep_offset if plan_of(w).asks_a_network(w.run) else None,
    script:
        "../scripts/train_pairs_student.py"
