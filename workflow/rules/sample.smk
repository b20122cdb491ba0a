# Samples of the students, from the noise that the teacher's samples started from.


rule sample_student:
    input:
        unpack(sampled_from),
        student=f"{RESULTS}/{{experiment}}/students/{{run}}",
        noise=f"{RESULTS}/{{experiment}}/noise.safetensors",
    output:
        f"{RESULTS}/{{experiment}}/samples/{{run}}.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/sample_student-{{run}}.log",
    wildcard_constraints:
        run=pattern({run for runs in RUNS.values() for run in runs}),
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        sampling=lambda w: dump(jobs.sampling_job(preset(w), run_of(w))),
    script:
        "../scripts/sample_student.py"
