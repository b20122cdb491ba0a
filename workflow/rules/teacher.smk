# Data, feature classifier, teacher; what is downloaded. What needs the network is local: nodes of a cluster often have none.


rule prepare_data:
    output:
        f"{RESULTS}/{{experiment}}/data.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/prepare_data.log",
    wildcard_constraints:
        experiment=experiments_where(lambda planned: not planned.in_latents),
    cache: CACHED
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        data=lambda w: dump(preset(w).data),
        own_files=lambda w: state_of(plan_of(w).own["data"]),
        identity=identity("prepare_data"),
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
    cache: CACHED
    priority: 10
    conda:
        "../../envs/train.yaml"
    threads: lambda w: preset(w).classifier.training.threads
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        classifier=lambda w: dump(preset(w).classifier),
        identity=identity("train_classifier"),
    script:
        "../scripts/train_classifier.py"


rule train_teacher:
    input:
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
    output:
        model=directory(f"{RESULTS}/{{experiment}}/teacher{{replicate}}"),
        stats=f"{RESULTS}/{{experiment}}/stats/teacher{{replicate}}.jsonl",
    log:
        f"{RESULTS}/logs/{{experiment}}/train_teacher{{replicate}}.log",
    wildcard_constraints:
        experiment=experiments_where(lambda planned: planned.experiment.teacher.source == "train"),
    cache: CACHED
    priority: 10
    conda:
        "../../envs/train.yaml"
    threads: lambda w: preset(w).teacher.training.threads
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        teacher=lambda w: plan_of(w).teacher_training(w.replicate),
        network=lambda w: dump(preset(w).network),
        schedule=lambda w: dump(preset(w).schedule),
        identity=identity("train_teacher"),
    script:
        "../scripts/train_teacher.py"


rule download_teacher:
    output:
        directory(f"{RESULTS}/{{experiment}}/downloads/teacher"),
    log:
        f"{RESULTS}/logs/{{experiment}}/download_teacher.log",
    wildcard_constraints:
        experiment=experiments_where(lambda planned: planned.experiment.teacher.source == "hub"),
    priority: 20
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        source=lambda w: plan_of(w).downloads["teacher"].model_dump(exclude={"gigabytes"}),
    script:
        "../scripts/download.py"


rule download_weights:
    output:
        directory(f"{RESULTS}/{{experiment}}/downloads/{{part}}"),
    log:
        f"{RESULTS}/logs/{{experiment}}/download_weights-{{part}}.log",
    wildcard_constraints:
        part="vae|inception-v3|dinov2|clip|aesthetic",
    priority: 20
    localrule: True
    conda:
        "../../envs/train.yaml"
    resources:
        download_mb=lambda w: megabytes(plan_of(w).downloads[w.part]),
    params:
        source=lambda w: plan_of(w).downloads[w.part].model_dump(exclude={"gigabytes"}),
    script:
        "../scripts/download.py"


rule import_teacher:
    input:
        source=lambda w: own_or_downloaded(w, "teacher"),
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
        prompts=lambda w: plan_of(w).prompts,
    output:
        model=directory(f"{RESULTS}/{{experiment}}/teacher"),
    log:
        f"{RESULTS}/logs/{{experiment}}/import_teacher.log",
    wildcard_constraints:
        experiment=experiments_where(lambda planned: planned.experiment.teacher.source in ("path", "hub")),
    cache: CACHED
    priority: 10
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=memory,
    params:
        schedule=lambda w: dump(preset(w).schedule),
        folder=lambda w: plan_of(w).own["teacher"],
        own_files=lambda w: state_of(plan_of(w).own["teacher"]),
        subfolder=lambda w: preset(w).teacher.subfolder,
        identity=identity("import_teacher"),
    script:
        "../scripts/import_teacher.py"


rule write_analytic_teacher:
    output:
        model=directory(f"{RESULTS}/{{experiment}}/teacher"),
    log:
        f"{RESULTS}/logs/{{experiment}}/write_analytic_teacher.log",
    wildcard_constraints:
        experiment=experiments_where(lambda planned: planned.exact),
    cache: CACHED
    conda:
        "../../envs/train.yaml"
    params:
        data=lambda w: dump(preset(w).data),
        identity=identity("write_analytic_teacher"),
    script:
        "../scripts/write_analytic_teacher.py"


# A closed form has no weights to start a student from: a network is trained on the same data for that.


rule train_initial:
    input:
        data=f"{RESULTS}/{{experiment}}/data.safetensors",
    output:
        model=directory(f"{RESULTS}/{{experiment}}/initial{{replicate}}"),
        stats=f"{RESULTS}/{{experiment}}/stats/initial{{replicate}}.jsonl",
    log:
        f"{RESULTS}/logs/{{experiment}}/train_initial{{replicate}}.log",
    wildcard_constraints:
        experiment=experiments_where(lambda planned: planned.exact),
    cache: CACHED
    priority: 10
    conda:
        "../../envs/train.yaml"
    threads: lambda w: preset(w).teacher.training.threads
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        teacher=lambda w: plan_of(w).teacher_training(w.replicate),
        network=lambda w: dump(preset(w).network),
        schedule=lambda w: dump(preset(w).schedule),
        identity=identity("train_teacher"),
    script:
        "../scripts/train_teacher.py"


# Captioned images: the prompts' embeddings and the images' latents, each computed once.


rule prepare_captions:
    output:
        images=f"{RESULTS}/{{experiment}}/images.safetensors",
        captions=f"{RESULTS}/{{experiment}}/captions.json",
    log:
        f"{RESULTS}/logs/{{experiment}}/prepare_captions.log",
    wildcard_constraints:
        experiment=experiments_where(lambda planned: planned.in_latents),
    cache: CACHED
    localrule: True
    conda:
        "../../envs/train.yaml"
    resources:
        download_mb=lambda w: megabytes(preset(w).data.download),
    params:
        data=lambda w: preset(w).data.model_dump(
            include={"name": True, "source": True, "side": True, "download": {"url", "name", "sha256"}}
        ),
        own_files=lambda w: state_of(plan_of(w).own["data"]),
        identity=identity("prepare_captions"),
    script:
        "../scripts/prepare_captions.py"


rule encode_prompts:
    input:
        captions=f"{RESULTS}/{{experiment}}/captions.json",
        pipeline=lambda w: own_or_downloaded(w, "teacher"),
    output:
        f"{RESULTS}/{{experiment}}/prompts.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/encode_prompts.log",
    wildcard_constraints:
        experiment=experiments_where(lambda planned: planned.in_latents),
    cache: CACHED
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        folder=lambda w: plan_of(w).own["teacher"],
        own_files=lambda w: state_of(plan_of(w).own["teacher"]),
        side=lambda w: preset(w).data.side,
        batch_size=lambda w: preset(w).data.batch_size,
        precision=lambda w: preset(w).data.precision,
        identity=identity("encode_prompts"),
    script:
        "../scripts/encode_prompts.py"


rule encode_images:
    input:
        images=f"{RESULTS}/{{experiment}}/images.safetensors",
        vae=lambda w: own_or_downloaded(w, "vae"),
    output:
        f"{RESULTS}/{{experiment}}/data.safetensors",
    log:
        f"{RESULTS}/logs/{{experiment}}/encode_images.log",
    wildcard_constraints:
        experiment=experiments_where(lambda planned: planned.in_latents),
    cache: CACHED
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
        runtime=minutes,
    params:
        folder=lambda w: plan_of(w).own["vae"],
        own_files=lambda w: state_of(plan_of(w).own["vae"]),
        batch_size=lambda w: preset(w).data.batch_size,
        precision=lambda w: preset(w).data.precision,
        identity=identity("encode_images"),
    script:
        "../scripts/encode_images.py"
