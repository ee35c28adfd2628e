# Features and questions to a trained model and its scores.


rule train:
    input:
        features=f"{RESULTS}/features.h5",
        questions=questions,
    output:
        checkpoint=f"{RESULTS}/{{model}}/seed-{{seed}}/checkpoint.safetensors",
        history=f"{RESULTS}/{{model}}/seed-{{seed}}/history.csv",
        config=f"{RESULTS}/{{model}}/seed-{{seed}}/config.yaml",
    params:
        settings=lambda wildcards: config["models"][wildcards.model],
        schedule={name: value for name, value in config["train"].items() if name not in ("seeds", "threads")},
        folder=lambda wildcards: f"{RESULTS}/{wildcards.model}/seed-{wildcards.seed}",
    log:
        f"{RESULTS}/logs/{{model}}/seed-{{seed}}.train.log",
    threads: config["train"]["threads"]
    resources:
        gpu=1,
    conda:
        "../../envs/torch.yaml"
    shell:
        f"avqa train --config {CONFIG} --model {{wildcards.model}} --seed {{wildcards.seed}}"
        f" --out {{params.folder}} {LOG}"


rule evaluate:
    input:
        checkpoint=rules.train.output.checkpoint,
        config=rules.train.output.config,
        features=f"{RESULTS}/features.h5",
    output:
        scores=f"{RESULTS}/{{model}}/seed-{{seed}}/scores.json",
        predictions=f"{RESULTS}/{{model}}/seed-{{seed}}/predictions.parquet",
    params:
        folder=lambda wildcards: f"{RESULTS}/{wildcards.model}/seed-{wildcards.seed}",
    log:
        f"{RESULTS}/logs/{{model}}/seed-{{seed}}.evaluate.log",
    threads: config["train"]["threads"]
    conda:
        "../../envs/torch.yaml"
    shell:
        f"avqa evaluate {{params.folder}} --split test {LOG}"
