# Features and questions to a trained model and its scores.


rule train:
    input:
        features=f"{DATASET}/features.h5",
        questions=questions,
    output:
        checkpoint=f"{DATASET}/models/{{model}}/seed-{{seed}}/checkpoint.safetensors",
        history=report(
            f"{DATASET}/models/{{model}}/seed-{{seed}}/history.csv",
            caption="captions/history.rst",
            category="Training",
            labels={"model": "{model}", "seed": "{seed}", "result": "history"},
        ),
        config=f"{DATASET}/models/{{model}}/seed-{{seed}}/config.yaml",
    log:
        f"{DATASET}/logs/{{model}}/seed-{{seed}}.train.log",
    benchmark:
        f"{DATASET}/benchmarks/{{model}}/seed-{{seed}}.train.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["train"]["threads"]
    resources:
        gpu=1,
    params:
        settings=training_settings,
        folder=subpath(output.checkpoint, parent=True),
    shell:
        f"avqa train --config {{params.settings:q}} --model {{wildcards.model}} --seed {{wildcards.seed}}"
        f" --out {{params.folder:q}} {LOG}"


rule evaluate:
    input:
        checkpoint=rules.train.output.checkpoint,
        config=rules.train.output.config,
        features=f"{DATASET}/features.h5",
    output:
        scores=report(
            f"{DATASET}/models/{{model}}/seed-{{seed}}/scores.json",
            caption="captions/scores.rst",
            category="Scores",
            labels={"model": "{model}", "seed": "{seed}", "result": "scores"},
        ),
        predictions=f"{DATASET}/models/{{model}}/seed-{{seed}}/predictions.parquet",
    log:
        f"{DATASET}/logs/{{model}}/seed-{{seed}}.evaluate.log",
    benchmark:
        f"{DATASET}/benchmarks/{{model}}/seed-{{seed}}.evaluate.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["train"]["threads"]
    params:
        folder=subpath(input.checkpoint, parent=True),
    shell:
        f"avqa evaluate {{params.folder:q}} --split test {LOG}"


rule explain:
    input:
        checkpoint=rules.train.output.checkpoint,
        config=rules.train.output.config,
        features=f"{DATASET}/features.h5",
    output:
        report(
            f"{DATASET}/models/{{model}}/seed-{{seed}}/explanation.json",
            caption="captions/explanation.rst",
            category="Scores",
            labels={"model": "{model}", "seed": "{seed}", "result": "what answers depend on"},
        ),
    log:
        f"{DATASET}/logs/{{model}}/seed-{{seed}}.explain.log",
    conda:
        "../../envs/torch.yaml"
    threads: config["train"]["threads"]
    params:
        folder=subpath(input.checkpoint, parent=True),
    shell:
        f"avqa explain {{params.folder:q}} {LOG}"
