# Shared initial noise, the teacher's samples, and the precomputed ODE targets.


rule draw_noise:
    input:
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
    output:
        f"{RESULTS}/{{experiment}}/noise{{replicate}}.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/draw_noise{{replicate}}.log",
    cache: CACHED
    priority: 10
    conda:
        "../../envs/train.yaml"
    params:
        n_samples=lambda w: preset(w).evaluation.count,
        seed=lambda w: plan_of(w).redrawn(preset(w).evaluation.seed, w.replicate),
        other_noises=lambda w: plan_of(w).other_noises,
        identity=identity("draw_noise"),
    script:
        "../scripts/draw_noise.py"


rule teacher_samples:
    input:
        teacher=lambda w: plan_of(w).teacher(w.replicate),
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
        noise=f"{RESULTS}/{{experiment}}/noise{{replicate}}.safetensors",
        prompts=lambda w: plan_of(w).prompts,
    output:
        f"{RESULTS}/{{experiment}}/samples/teacher-{{condition}}{{replicate}}.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/teacher_samples-{{condition}}{{replicate}}.log",
    cache: CACHED
    priority: 10
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        condition=lambda w: plan_of(w).conditions[w.condition],
        code=lambda w: code_of("solver", plan_of(w).conditions[w.condition]["solver"]),
        schedule=lambda w: dump(preset(w).schedule),
        timestep_offset=lambda w: preset(w).teacher.timestep_offset,
        precision=lambda w: preset(w).teacher.precision,
        compile=lambda w: preset(w).teacher.compile,
        starts=lambda w: preset(w).evaluation.start_times,
        n_samples=lambda w: preset(w).evaluation.count,
        batch_size=lambda w: preset(w).evaluation.batch_size,
        identity=identity("teacher_samples"),
    script:
        "../scripts/teacher_samples.py"


rule solve_truth:
    input:
        teacher=lambda w: plan_of(w).teacher(w.replicate),
        noise=f"{RESULTS}/{{experiment}}/noise{{replicate}}.safetensors",
    output:
        f"{RESULTS}/{{experiment}}/truth{{replicate}}.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/solve_truth{{replicate}}.log",
    wildcard_constraints:
        experiment=experiments_where(lambda planned: planned.exact),
    cache: CACHED
    priority: 5
    conda:
        "../../envs/train.yaml"
    threads: 1
    params:
        flows=lambda w: plan_of(w).true_ends,
        identity=identity("solve_truth"),
    script:
        "../scripts/solve_truth.py"


rule solve_targets:
    input:
        teacher=lambda w: plan_of(w).teacher(w.replicate),
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
        prompts=lambda w: plan_of(w).prompts,
    output:
        f"{RESULTS}/{{experiment}}/targets/{{mode}}-{{condition}}{{replicate}}/shard-{{shard}}.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/solve_targets-{{mode}}-{{condition}}{{replicate}}-{{shard}}.log",
    cache: CACHED
    priority: 5
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        condition=lambda w: plan_of(w).conditions[w.condition],
        code=lambda w: code_of("solver", plan_of(w).conditions[w.condition]["solver"]),
        schedule=lambda w: dump(preset(w).schedule),
        timestep_offset=lambda w: preset(w).teacher.timestep_offset,
        precision=lambda w: preset(w).teacher.precision,
        compile=lambda w: preset(w).teacher.compile,
        targets=lambda w: plan_of(w).targets(w.replicate),
        identity=identity("solve_targets"),
    script:
        "../scripts/solve_targets.py"


rule gather_targets:
    input:
        teacher=lambda w: plan_of(w).teacher(w.replicate),
        shards=lambda w: plan_of(w).shards(f"{w.mode}-{w.condition}{w.replicate}"),
    output:
        f"{RESULTS}/{{experiment}}/targets/{{mode}}-{{condition}}{{replicate}}/manifest.json",
    log:
        f"{RESULTS}/logs/{{experiment}}/gather_targets-{{mode}}-{{condition}}{{replicate}}.log",
    cache: CACHED
    conda:
        "../../envs/train.yaml"
    params:
        condition=lambda w: plan_of(w).conditions[w.condition],
        n_draws=lambda w: preset(w).targets.count,
        seed=lambda w: plan_of(w).targets(w.replicate)["seed"],
        identity=identity("gather_targets"),
    script:
        "../scripts/gather_targets.py"
