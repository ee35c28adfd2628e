# Features and questions to trained models and their scores.


def extracted(use):
    """That the encoders which the model reads have read what is needed."""
    return lambda wildcards: extracted_for(wildcards, use, CONFIGS[wildcards.dataset]["models"][wildcards.model])


def extracted_for(wildcards, use, entry):
    """That the encoders which an entry of models reads have read what is needed."""
    return [f"{RESULTS}/{wildcards.dataset}/extracted/{use}/{encoder}" for encoder in encoders_read(entry)]


def training_settings(wildcards):
    """Which other models and seeds there are, and the number of threads, is no reason to train again."""
    return run_settings(wildcards, wildcards.model, CONFIGS[wildcards.dataset]["models"][wildcards.model])


def run_settings(wildcards, model, entry):
    """What a run with a given seed depends on: the model, and its complete schedule."""
    schedule = training(CONFIGS[wildcards.dataset] | {"models": {model: entry}}, model)
    entry = {name: value for name, value in entry.items() if name != "train"}
    return settings("results", "dataset", models={model: entry}, train=schedule)(wildcards)


def workers(wildcards, threads):
    return CONFIGS[wildcards.dataset]["train"]["workers"]


def checkpoint_files(name):
    """The checkpoints of a data set that is trained."""
    own = CONFIGS[name]
    return (
        expand(rules.train.output.checkpoint, dataset=name, model=own["models"], seed=own["train"]["seeds"])
        if name in TRAINED
        else []
    )


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
    group:
        "training"
    conda:
        "../../envs/torch.yaml"
    threads: training_threads
    resources:
        gpu=gpu,
        mem_mb=mem_mb("train"),
        runtime=runtime("train"),
    params:
        settings=training_settings,
        questions=from_manifest("training"),
        text=text_settings,
        workers=workers,
        folder=lambda wildcards, output: Path(output.checkpoint).parent,
    shell:
        f"avqa train --config {{params.settings:q}} --model {{wildcards.model}} --seed {{wildcards.seed}}"
        f" --workers {{params.workers}} --out {{params.folder:q}} {LOG}"


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
    group:
        "training"
    conda:
        "../../envs/torch.yaml"
    threads: training_threads
    resources:
        gpu=gpu,
        mem_mb=mem_mb("evaluate"),
        runtime=runtime("evaluate"),
    params:
        questions=from_manifest("test"),
        text=text_settings,
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
        text=text_settings,
        trained=lambda wildcards, input: Path(input.checkpoint).parent,
        dataset=lambda wildcards, input: Path(input.features).parent,
        folder=lambda wildcards, output: Path(output.scores).parent,
    shell:
        "avqa evaluate {params.trained:q} --split test --questions-of {params.dataset:q} --out {params.folder:q}"
        f" {LOG}"
