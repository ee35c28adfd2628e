# Features and questions to trained models and their scores.

RUN = f"{RESULTS}/{paths.RUN}"
OTHERS_SCORES = f"{RESULTS}/{paths.SCORES}"
SCORES = OTHERS_SCORES.replace("{trained_on}", "{dataset}")


rule train:
    input:
        unless_made(
            [f"{RUN}/checkpoint.safetensors", f"{RUN}/history.csv", f"{RUN}/config.yaml"],
            JOBS.data,
        ),
    output:
        checkpoint=f"{RUN}/checkpoint.safetensors",
        history=report(
            f"{RUN}/history.csv",
            caption="captions/history.rst",
            category="Training",
            labels={"data set": "{dataset}", "model": "{run}", "seed": "{seed}", "result": "history"},
        ),
        config=f"{RUN}/config.yaml",
    log:
        f"{DATASET}/logs/{{run}}/seed-{{seed}}.train.log",
    benchmark:
        f"{RUN}/benchmark.tsv"
    group:
        "training"
    conda:
        "../../envs/torch.yaml"
    threads: lambda wildcards: CLUSTER.threads("train", CONFIGS[wildcards.dataset]["train"]["threads"])
    resources:
        gpu=CLUSTER.gpu("train"),
        mem_mb=lambda wildcards, attempt: CLUSTER.training_mem_mb(JOBS.one_model(wildcards), attempt),
        runtime=CLUSTER.runtime("train"),
    params:
        settings=JOBS.train_flags,
        folder=lambda wildcards, output: Path(output.checkpoint).parent,
        timing=lambda wildcards, output: Path(output.checkpoint).with_name("timing.json"),
    shell:
        f"avqa train {{params.settings}} --out {{params.folder:q}} --timing {{params.timing:q}} {LOG}"


rule evaluate:
    input:
        unless_made([f"{SCORES}/scores.json", f"{SCORES}/predictions.parquet"], JOBS.evaluate_inputs),
    output:
        scores=report(
            f"{SCORES}/scores.json",
            caption="captions/scores.rst",
            category="Scores",
            labels={"data set": "{dataset}", "model": "{run}", "seed": "{seed}", "result": "scores"},
        ),
        predictions=f"{SCORES}/predictions.parquet",
    log:
        f"{DATASET}/logs/{{run}}/seed-{{seed}}.evaluate.log",
    benchmark:
        f"{SCORES}/benchmark.tsv"
    group:
        "training"
    conda:
        "../../envs/torch.yaml"
    threads: lambda wildcards: CLUSTER.threads("train", CONFIGS[wildcards.dataset]["train"]["threads"])
    resources:
        gpu=CLUSTER.gpu("evaluate"),
        mem_mb=CLUSTER.mem_mb("evaluate"),
        runtime=CLUSTER.runtime("evaluate"),
    params:
        settings=JOBS.evaluate_flags,
        folder=lambda wildcards, output: Path(output.scores).parent,
    shell:
        f"avqa evaluate {{params.settings}} --out {{params.folder:q}} {LOG}"


# The same for models of another data set, whose training is not part of the same job of a cluster.
use rule evaluate as score with:
    input:
        unless_made([f"{OTHERS_SCORES}/scores.json", f"{OTHERS_SCORES}/predictions.parquet"], JOBS.evaluate_inputs),
    output:
        scores=report(
            f"{OTHERS_SCORES}/scores.json",
            caption="captions/scores.rst",
            category="Scores",
            labels={
                "data set": "{dataset}",
                "model": "{run} trained on {trained_on}",
                "seed": "{seed}",
                "result": "scores",
            },
        ),
        predictions=f"{OTHERS_SCORES}/predictions.parquet",
    log:
        f"{DATASET}/logs/trained_on/{{trained_on}}/{{run}}/seed-{{seed}}.log",
    benchmark:
        f"{OTHERS_SCORES}/benchmark.tsv"
    group:
        None
    resources:
        gpu=CLUSTER.gpu("score"),
        mem_mb=CLUSTER.mem_mb("score"),
        runtime=CLUSTER.runtime("score"),


ruleorder: evaluate > score


rule explain:
    input:
        unless_made(f"{SCORES}/explanation.json", JOBS.explain_inputs),
    output:
        report(
            f"{SCORES}/explanation.json",
            caption="captions/explanation.rst",
            category="Scores",
            labels={"data set": "{dataset}", "model": "{run}", "seed": "{seed}", "result": "what answers depend on"},
        ),
    log:
        f"{DATASET}/logs/{{run}}/seed-{{seed}}.explain.log",
    group:
        "training"
    conda:
        "../../envs/torch.yaml"
    threads: lambda wildcards: CLUSTER.threads("train", CONFIGS[wildcards.dataset]["train"]["threads"])
    resources:
        gpu=CLUSTER.gpu("explain"),
        mem_mb=CLUSTER.mem_mb("explain"),
        runtime=CLUSTER.runtime("explain"),
    params:
        settings=JOBS.evaluate_flags,
        folder=lambda wildcards, output: Path(output[0]).parent,
    shell:
        f"avqa explain {{params.settings}} --out {{params.folder:q}} {LOG}"
