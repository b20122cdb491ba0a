# Students: one job a row of the table of runs.


rule train_student:
    input:
        unpack(lambda w: plan_of(w).lessons(w.run)),
    output:
        model=directory(f"{RESULTS}/{{experiment}}/students/{{run}}"),
        stats=f"{RESULTS}/{{experiment}}/stats/{{run}}.jsonl",
    log:
        f"{RESULTS}/logs/{{experiment}}/train_student-{{run}}.log",
    conda:
        "../../envs/train.yaml"
    threads: lambda w: plan_of(w).section(w.run).training.threads
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        student=lambda w: plan_of(w).training(w.run),
    script:
        "../scripts/train_student.py"
