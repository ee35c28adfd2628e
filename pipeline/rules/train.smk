# Features and questions to trained models and their scores.


def extracted(use):
    """That the encoders which the model reads have read what is needed."""
    return lambda wildcards: [
        f"{RESULTS}/{wildcards.dataset}/extracted/{use}/{encoder}" for encoder in encoders_read(wildcards)
    ]


def training_settings(wildcards):
    """Which other models and seeds there are, and the number of threads, is no reason to train again."""
    models = {wildcards.model: CONFIGS[wildcards.dataset]["models"][wildcards.model]}
    return settings("results", "dataset", models=models, train=schedule(wildcards))(wildcards)


def checkpoint_files(name):
    """The checkpoints of a data set that is trained."""
    own = CONFIGS[name]
    return expand(
        rules.train.output.checkpoint, dataset=name, model=own["models"], seed=own["train"]["seeds"]
    ) if name in TRAINED else []


def training_threads(wildcards):
    return threads_for(CONFIGS[wildcards.dataset]["train"]["threads"])


rule train:
    input:
        features=ancient(f"{DATASET}/features.h5"),
        extracted=extracted("training"),
        questions=questions,
    output:
        checkpoint=f"{DATASET}/models/{{model}}/seed-{{seed}}/checkpoint.safetensors",
        history=f"{DATASET}/models/{{model}}/seed-{{seed}}/history.csv",
        config=f"{DATASET}/models/{{model}}/seed-{{seed}}/config.yaml",
    log:
        f"{DATASET}/logs/{{model}}/seed-{{seed}}.train.log",
    conda:
        "../../envs/torch.yaml"
    threads: training_threads
    group:
        "training"
    resources:
        gpu=gpu,
        mem_mb=mem_mb("train"),
        runtime=runtime("train"),
    params:
        settings=training_settings,
        questions=from_manifest("training"),
        text=text_flags,
        folder=lambda wildcards, output: Path(output.checkpoint).parent,
    shell:
        f"avqa train --config {{params.settings:q}} --model {{wildcards.model}} --seed {{wildcards.seed}}"
        f" --out {{params.folder:q}} {LOG}"


rule evaluate:
    input:
        checkpoint=rules.train.output.checkpoint,
        config=rules.train.output.config,
        features=ancient(f"{DATASET}/features.h5"),
        extracted=extracted("all"),
        questions=questions,
    output:
        scores=f"{DATASET}/models/{{model}}/seed-{{seed}}/scores.json",
        predictions=f"{DATASET}/models/{{model}}/seed-{{seed}}/predictions.parquet",
    log:
        f"{DATASET}/logs/{{model}}/seed-{{seed}}.evaluate.log",
    conda:
        "../../envs/torch.yaml"
    threads: training_threads
    group:
        "training"
    resources:
        gpu=gpu,
        mem_mb=mem_mb("evaluate"),
        runtime=runtime("evaluate"),
    params:
        questions=from_manifest("test"),
        text=text_flags,
        folder=lambda wildcards, input: Path(input.checkpoint).parent,
    shell:
        f"avqa evaluate {{params.folder:q}} --split test {LOG}"


# The same with the questions of another data set.
rule score:
    input:
        checkpoint=f"{RESULTS}/{{trained_on}}/models/{{model}}/seed-{{seed}}/checkpoint.safetensors",
        config=f"{RESULTS}/{{trained_on}}/models/{{model}}/seed-{{seed}}/config.yaml",
        trained_with=ancient(f"{RESULTS}/{{trained_on}}/features.h5"),
        features=ancient(f"{DATASET}/features.h5"),
        extracted=extracted("all"),
        questions=questions,
    output:
        scores=f"{DATASET}/trained_on/{{trained_on}}/models/{{model}}/seed-{{seed}}/scores.json",
        predictions=f"{DATASET}/trained_on/{{trained_on}}/models/{{model}}/seed-{{seed}}/predictions.parquet",
    log:
        f"{DATASET}/logs/trained_on/{{trained_on}}/{{model}}/seed-{{seed}}.log",
    conda:
        "../../envs/torch.yaml"
    threads: training_threads
    resources:
        gpu=gpu,
        mem_mb=mem_mb("evaluate"),
        runtime=runtime("evaluate"),
    params:
        questions=from_manifest("test"),
        text=text_flags,
        trained=lambda wildcards, input: Path(input.checkpoint).parent,
        dataset=lambda wildcards, input: Path(input.features).parent,
        folder=lambda wildcards, output: Path(output.scores).parent,
    shell:
        "avqa evaluate {params.trained:q} --split test --questions-of {params.dataset:q} --out {params.folder:q}"
        f" {LOG}"
