# Features and questions to trained models and their scores.

RUN = f"{DATASET}/runs/{{run}}/seed-{{seed}}"
SCORES = f"{DATASET}/scores/{{dataset}}/{{run}}/seed-{{seed}}"
OTHERS_SCORES = f"{DATASET}/scores/{{trained_on}}/{{run}}/seed-{{seed}}"


@functools.cache
def models_of(name):
    """The models of a data set: name and entry, None where it is the configuration's; then those of the papers' tables."""
    rows = GRIDS[name].to_dict("records") if name in GRIDS else []
    models = CONFIGS[name]["models"]
    return [(model, None) for model in models] + [
        (row["entry"], changed_entry(models[row["entry"]], json.loads(row["settings"]))) for row in rows
    ]


def find_model(wildcards, folder_of):
    """The name and the entry of the model whose folder is `run`."""
    for model, entry in models_of(wildcards.dataset):
        if folder_of(model, entry).parent.name == wildcards.run:
            return model, entry
    raise WorkflowError(f"{RESULTS}/{wildcards.dataset}: {wildcards.run} is not of this configuration")


@functools.cache
def trained_model(wildcards):
    files = made(wildcards.dataset)
    return find_model(wildcards, lambda model, entry: files.run_dir(model, 0, entry))


def scored_model(wildcards):
    files, trained_on = made(wildcards.dataset), trained_on_of(wildcards)
    return find_model(wildcards, lambda model, entry: files.scores_dir(trained_on, model, 0, entry))


def trained_on_of(wildcards):
    return getattr(wildcards, "trained_on", wildcards.dataset)


def data_files(files):
    """What models read, and the table that is not there where too many videos failed."""
    return [files.data_dir / "features.h5", files.data_dir / "failures.tsv"]


def train_flags(wildcards):
    files, (model, entry) = made(wildcards.dataset), trained_model(wildcards)
    config = files.one_model(model, entry)
    given = settings(wildcards.dataset, "results", "dataset", models=config["models"], train=config["train"])
    return flags(config=given, data=files.data_dir, model=model, seed=wildcards.seed, key=files.run_key(model, entry).text)


rule train:
    input:
        unless_made(
            [f"{RUN}/checkpoint.safetensors", f"{RUN}/history.csv", f"{RUN}/config.yaml"],
            lambda wildcards: data_files(made(wildcards.dataset)),
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
        mem_mb=lambda wildcards, attempt: CLUSTER.training_mem_mb(made(wildcards.dataset).one_model(*trained_model(wildcards)), attempt),
        runtime=CLUSTER.runtime("train"),
    params:
        settings=train_flags,
        folder=lambda wildcards, output: Path(output.checkpoint).parent,
        timing=lambda wildcards, output: Path(output.checkpoint).with_name("timing.json"),
    shell:
        f"avqa train {{params.settings}} --out {{params.folder:q}} --timing {{params.timing:q}} {LOG}"


def run_of(wildcards):
    """The folder of the training whose model is scored."""
    model, entry = scored_model(wildcards)
    return made(trained_on_of(wildcards)).run_dir(model, wildcards.seed, entry)


def evaluate_inputs(wildcards):
    return [run_of(wildcards) / "config.yaml", run_of(wildcards) / "checkpoint.safetensors", *data_files(made(wildcards.dataset))]


def evaluate_flags(wildcards):
    (model, entry), files = scored_model(wildcards), made(wildcards.dataset)
    key = files.scores_key(trained_on_of(wildcards), model, entry).text
    return shlex.quote(str(run_of(wildcards))) + " " + flags(questions_of=files.data_dir, key=key)


rule evaluate:
    input:
        unless_made([f"{SCORES}/scores.json", f"{SCORES}/predictions.parquet"], evaluate_inputs),
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
        settings=evaluate_flags,
        folder=lambda wildcards, output: Path(output.scores).parent,
    shell:
        f"avqa evaluate {{params.settings}} --out {{params.folder:q}} {LOG}"


# The same for models of another data set, whose training is not part of the same job of a cluster.
use rule evaluate as score with:
    input:
        unless_made([f"{OTHERS_SCORES}/scores.json", f"{OTHERS_SCORES}/predictions.parquet"], evaluate_inputs),
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
        unless_made(
            f"{SCORES}/explanation.json",
            lambda wildcards: [f"{SCORES}/scores.json".format(**wildcards), *evaluate_inputs(wildcards)],
        ),
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
        settings=evaluate_flags,
        folder=lambda wildcards, output: Path(output[0]).parent,
    shell:
        f"avqa explain {{params.settings}} --out {{params.folder:q}} {LOG}"
