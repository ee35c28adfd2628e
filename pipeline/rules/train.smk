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
        history=report(
            f"{MODEL}/history.csv",
            caption="captions/history.rst",
            category="Training",
            labels={"data set": "{dataset}", "model": "{model}", "seed": "{seed}", "result": "history"},
        ),
        config=f"{MODEL}/config.yaml",
    log:
        f"{DATASET}/logs/{{model}}/seed-{{seed}}.train.log",
    benchmark:
        f"{DATASET}/benchmarks/{{model}}/seed-{{seed}}.train.tsv"
    group:
        "training"
    conda:
        "../../envs/torch.yaml"
    threads: training_threads
    resources:
        gpu=gpu("train"),
        mem_mb=mem_mb("train"),
        runtime=runtime("train"),
    params:
        settings=training_settings,
        questions=TRAINING,
        text=text_settings,
        workers=workers,
        folder=lambda wildcards, output: Path(output.checkpoint).parent,
        timing=timing_in(f"{DATASET}/benchmarks/{{model}}/seed-{{seed}}.train.json"),
    shell:
        f"avqa train --config {{params.settings:q}} --model {{wildcards.model}} --seed {{wildcards.seed}}"
        f" --workers {{params.workers}} --out {{params.folder:q}} --timing {{params.timing:q}} {LOG}"


rule evaluate:
    input:
        checkpoint=rules.train.output.checkpoint,
        config=rules.train.output.config,
        features=index_if_not(is_scored_already),
        extracted=extracted("all"),
        questions=questions,
    output:
        scores=report(
            f"{MODEL}/scores.json",
            caption="captions/scores.rst",
            category="Scores",
            labels={"data set": "{dataset}", "model": "{model}", "seed": "{seed}", "result": "scores"},
        ),
        predictions=f"{MODEL}/predictions.parquet",
    log:
        f"{DATASET}/logs/{{model}}/seed-{{seed}}.evaluate.log",
    benchmark:
        f"{DATASET}/benchmarks/{{model}}/seed-{{seed}}.evaluate.tsv"
    group:
        "training"
    conda:
        "../../envs/torch.yaml"
    threads: training_threads
    resources:
        gpu=gpu("evaluate"),
        mem_mb=mem_mb("evaluate"),
        runtime=runtime("evaluate"),
    params:
        questions=TEST,
        text=text_settings,
        folder=lambda wildcards, input: Path(input.checkpoint).parent,
    shell:
        f"avqa evaluate {{params.folder:q}} --split test {LOG}"


rule explain:
    input:
        checkpoint=rules.train.output.checkpoint,
        config=rules.train.output.config,
        scores=rules.evaluate.output.scores,
        features=index_if_not(is_explained_already),
    output:
        report(
            f"{MODEL}/explanation.json",
            caption="captions/explanation.rst",
            category="Scores",
            labels={
                "data set": "{dataset}",
                "model": "{model}",
                "seed": "{seed}",
                "result": "what answers depend on",
            },
        ),
    log:
        f"{DATASET}/logs/{{model}}/seed-{{seed}}.explain.log",
    group:
        "training"
    conda:
        "../../envs/torch.yaml"
    threads: training_threads
    resources:
        gpu=gpu("explain"),
        mem_mb=mem_mb("explain"),
        runtime=runtime("explain"),
    params:
        folder=lambda wildcards, input: Path(input.checkpoint).parent,
    shell:
        f"avqa explain {{params.folder:q}} {LOG}"


# The same with the questions of another data set.
rule score:
    input:
        checkpoint=f"{TRAINED_MODEL}/checkpoint.safetensors",
        config=f"{TRAINED_MODEL}/config.yaml",
        features=index_if_not(is_scored_already),
        extracted=extracted("all"),
        questions=questions,
    output:
        scores=report(
            f"{SCORED}/scores.json",
            caption="captions/scores.rst",
            category="Scores",
            labels={
                "data set": "{dataset}",
                "model": "{model} trained on {trained_on}",
                "seed": "{seed}",
                "result": "scores",
            },
        ),
        predictions=f"{SCORED}/predictions.parquet",
    log:
        f"{DATASET}/logs/trained_on/{{trained_on}}/{{model}}/seed-{{seed}}.log",
    conda:
        "../../envs/torch.yaml"
    threads: training_threads
    resources:
        gpu=gpu("score"),
        mem_mb=mem_mb("score"),
        runtime=runtime("score"),
    params:
        questions=TEST,
        text=text_settings,
        trained=lambda wildcards, input: Path(input.checkpoint).parent,
        dataset=lambda wildcards, input: f"{RESULTS}/{wildcards.dataset}",
        folder=lambda wildcards, output: Path(output.scores).parent,
    shell:
        "avqa evaluate {params.trained:q} --split test --questions-of {params.dataset:q} --out {params.folder:q}"
        f" {LOG}"
