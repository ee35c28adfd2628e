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


def features_first(use, made, inputs, *params):
    """features.h5 must be there, but what in it matters to a model is said by `extracted` and by the params."""

    def path(wildcards):
        index = f"{RESULTS}/{wildcards.dataset}/features.h5"
        files = [*extracted(use)(wildcards), *expand(inputs, **wildcards)]
        return ordered(index, wildcards, made.format(**wildcards), files, params)

    return path


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


MODEL = f"{DATASET}/models/{{model}}/seed-{{seed}}"
TRAINED_MODEL = f"{RESULTS}/{{trained_on}}/models/{{model}}/seed-{{seed}}"
SCORED = f"{DATASET}/trained_on/{{trained_on}}/models/{{model}}/seed-{{seed}}"
TRAINING, TEST = from_manifest("training"), from_manifest("test")


rule train:
    input:
        features=features_first("training", f"{MODEL}/config.yaml", [], training_settings, TRAINING, text_settings),
        extracted=extracted("training"),
        questions=questions,
    output:
        checkpoint=f"{MODEL}/checkpoint.safetensors",
        history=f"{MODEL}/history.csv",
        config=f"{MODEL}/config.yaml",
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
        questions=TRAINING,
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
        features=features_first("all", f"{MODEL}/scores.json", [rules.train.output.config], TEST, text_settings),
        extracted=extracted("all"),
        questions=questions,
    output:
        scores=f"{MODEL}/scores.json",
        predictions=f"{MODEL}/predictions.parquet",
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
        questions=TEST,
        text=text_settings,
        folder=lambda wildcards, input: Path(input.checkpoint).parent,
    shell:
        f"avqa evaluate {{params.folder:q}} --split test {LOG}"


# The same with the questions of another data set.
rule score:
    input:
        checkpoint=f"{TRAINED_MODEL}/checkpoint.safetensors",
        config=f"{TRAINED_MODEL}/config.yaml",
        features=features_first("all", f"{SCORED}/scores.json", [f"{TRAINED_MODEL}/config.yaml"], TEST, text_settings),
        extracted=extracted("all"),
        questions=questions,
    output:
        scores=f"{SCORED}/scores.json",
        predictions=f"{SCORED}/predictions.parquet",
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
        questions=TEST,
        text=text_settings,
        trained=lambda wildcards, input: Path(input.checkpoint).parent,
        dataset=lambda wildcards, input: Path(input.features).parent,
        folder=lambda wildcards, output: Path(output.scores).parent,
    shell:
        "avqa evaluate {params.trained:q} --split test --questions-of {params.dataset:q} --out {params.folder:q}"
        f" {LOG}"
