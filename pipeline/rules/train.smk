# Features and questions to trained models and their scores.


MODEL = f"{DATASET}/models/{{model}}/seed-{{seed}}"
TRAINED_MODEL = f"{RESULTS}/{{trained_on}}/models/{{model}}/seed-{{seed}}"
SCORED = f"{DATASET}/trained_on/{{trained_on}}/models/{{model}}/seed-{{seed}}"
TRAINING, TEST = from_manifest("training"), from_manifest("test")


rule train:
    input:
        features=index_if_not(is_trained_already),
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
        features=index_if_not(is_scored_already),
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
        features=index_if_not(is_scored_already),
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
        dataset=lambda wildcards, input: f"{RESULTS}/{wildcards.dataset}",
        folder=lambda wildcards, output: Path(output.scores).parent,
    shell:
        "avqa evaluate {params.trained:q} --split test --questions-of {params.dataset:q} --out {params.folder:q}"
        f" {LOG}"
