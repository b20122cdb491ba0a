# Samples of the students, from the noise that the teacher's samples started from.


rule sample_student:
    input:
        student=f"{RESULTS}/{{experiment}}/students/{{run}}",
        initial=lambda w: plan_of(w).initial,
        prompts=lambda w: plan_of(w).prompts,
        noise=f"{RESULTS}/{{experiment}}/noise.safetensors",
        teacher_samples=lambda w: f"{RESULTS}/{w.experiment}/samples/teacher-{run_of(w).condition}.safetensors",
    output:
        f"{RESULTS}/{{experiment}}/samples/{{run}}.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/sample_student-{{run}}.log",
    wildcard_constraints:
        run=pattern(run for planned in PLANS.values() for run in planned.from_targets),
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        schedule=lambda w: dump(preset(w).schedule),
        timestep_offset=lambda w: preset(w).teacher.timestep_offset,
        n_steps=lambda w: run_of(w).n_steps,
        sampling_steps=lambda w: preset(w).evaluation.sampling_steps,
        n_samples=lambda w: preset(w).evaluation.count,
        seed=lambda w: preset(w).evaluation.seed,
        batch_size=lambda w: preset(w).evaluation.batch_size,
        precision=lambda w: preset(w).evaluation.precision,
    script:
        "../scripts/sample_student.py"


rule sample_pairs_student:
    input:
        student=f"{RESULTS}/{{experiment}}/students/{{run}}",
        noise=f"{RESULTS}/{{experiment}}/noise.safetensors",
    output:
        f"{RESULTS}/{{experiment}}/samples/{{run}}.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/sample_pairs_student-{{run}}.log",
    wildcard_constraints:
        run=pattern(run for planned in PLANS.values() for run in planned.from_pairs),
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        edm=lambda w: dump(preset(w).consistency_training.edm),
        budgets=lambda w: preset(w).consistency_training.budgets,
        sampling_steps=lambda w: preset(w).evaluation.sampling_steps,
        n_samples=lambda w: preset(w).evaluation.count,
        seed=lambda w: preset(w).evaluation.seed,
        batch_size=lambda w: preset(w).evaluation.batch_size,
        precision=lambda w: preset(w).evaluation.precision,
    script:
        "../scripts/sample_pairs_student.py"
