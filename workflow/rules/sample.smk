# Samples of the students, from the noise that the teacher's samples started from.


rule sample_student:
    input:
        unpack(lambda w: plan_of(w).sampled_from(w.run)),
        student=f"{RESULTS}/{{experiment}}/students/{{run}}",
    output:
        f"{RESULTS}/{{experiment}}/samples/{{run}}.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/sample_student-{{run}}.log",
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        sampling=lambda w: plan_of(w).sampling(w.run),
    script:
        "../scripts/sample_student.py"
