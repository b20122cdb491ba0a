# Students: one job a row of the table of runs.


rule train_student:
    input:
        unpack(lessons_of),
    output:
        model=directory(f"{RESULTS}/{{experiment}}/students/{{run}}"),
        stats=f"{RESULTS}/{{experiment}}/stats/{{run}}.jsonl",
    log:
        f"{RESULTS}/logs/{{experiment}}/train_student-{{run}}.log",
    wildcard_constraints:
        run=pattern({run for runs in RUNS.values() for run in runs}),
    conda:
        "../../envs/train.yaml"
    threads: lambda w: training_of(w).training.threads
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        student=lambda w: dump(training_of(w)),
    script:
        "../scripts/train_student.py"
