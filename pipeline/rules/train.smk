# Features and questions to a trained model and its scores.


rule train:
    input:
        features=f"{DATASET}/features.h5",
        questions=questions,
    output:
        checkpoint=f"{DATASET}/models/{{model}}/seed-{{seed}}/checkpoint.safetensors",
        history=f"{DATASET}/models/{{model}}/seed-{{seed}}/history.csv",
        config=f"{DATASET}/models/{{model}}/seed-{{seed}}/config.yaml",
    log:
        f"{DATASET}/logs/{{model}}/seed-{{seed}}.train.log",
    conda:
        "../../envs/torch.yaml"
    threads: config["train"]["threads"]
    resources:
        gpu=1,
        workers=config["train"]["workers"],
    params:
        settings=training_settings,
        folder=subpath(output.checkpoint, parent=True),
    shell:
        f"avqa train --config {{params.settings:q}} --model {{wildcards.model}} --seed {{wildcards.seed}}"
        f" --workers {{resources.workers}} --out {{params.folder:q}} {LOG}"


rule evaluate:
    input:
        checkpoint=rules.train.output.checkpoint,
        config=rules.train.output.config,
        features=f"{DATASET}/features.h5",
    output:
        scores=f"{DATASET}/models/{{model}}/seed-{{seed}}/scores.json",
        predictions=f"{DATASET}/models/{{model}}/seed-{{seed}}/predictions.parquet",
    log:
        f"{DATASET}/logs/{{model}}/seed-{{seed}}.evaluate.log",
    conda:
        "../../envs/torch.yaml"
    threads: config["train"]["threads"]
    params:
        folder=subpath(input.checkpoint, parent=True),
    shell:
        f"avqa evaluate {{params.folder:q}} --split test {LOG}"
