# Shards to one logical file, features.h5, whose numbers are then checked, and the list of what failed.

DATA = f"{DATASET}/data/{{key}}"


def index_inputs(wildcards):
    files = made(wildcards.dataset)
    features = [path for encoder in files.config["encoders"] for path in files.features_files(encoder)]
    return [files.manifest_dir / "questions.parquet", *features, *files.text_files()]


def index_flags(wildcards):
    files = made(wildcards.dataset)
    texts = {name: str(files.text_file(name)) for name in text_encoders(files.config)}
    return flags(
        manifest=files.manifest_dir,
        collection=files.collection,
        features=json.dumps(files.features_names()),
        texts=json.dumps(texts),
        key=files.data_key.text,
    )


rule index:
    input:
        unless_made(f"{DATA}/features.h5", index_inputs),
    output:
        features=f"{DATA}/features.h5",
        questions=f"{DATA}/questions.parquet",
        manifest=f"{DATA}/manifest.json",
    log:
        f"{DATASET}/logs/index/{{key}}.log",
    conda:
        "../../envs/media.yaml"
    params:
        settings=index_flags,
        folder=lambda wildcards, output: Path(output.features).parent,
    shell:
        f"avqa index {{params.settings}} --out {{params.folder:q}} {LOG}"


rule verify:
    input:
        unless_made(f"{DATA}/verify.json", lambda wildcards: f"{DATA}/features.h5".format(**wildcards)),
    output:
        f"{DATA}/verify.json",
    log:
        f"{DATASET}/logs/verify/{{key}}.log",
    conda:
        "../../envs/media.yaml"
    params:
        features=lambda wildcards, output: Path(output[0]).with_name("features.h5"),
        findings=lambda wildcards, output: Path(output[0]).with_name("findings.json"),  # where there are errors too
    shell:
        f"avqa verify {{params.features:q}} --json {{params.findings:q}} {LOG} && mv {{params.findings:q}} {{output:q}}"


rule failures:
    input:
        unless_made(f"{DATA}/failures.tsv", lambda wildcards: f"{DATA}/features.h5".format(**wildcards)),
    output:
        failures=report(
            f"{DATA}/failures.tsv",
            caption="captions/failures.rst",
            category="Data set",
            labels={"data set": "{dataset}", "result": "videos that could not be decoded"},
        ),
        missing=report(
            f"{DATA}/missing.tsv",
            caption="captions/missing.rst",
            category="Data set",
            labels={"data set": "{dataset}", "result": "questions of missing videos"},
        ),
    log:
        f"{DATASET}/logs/failures/{{key}}.log",
    conda:
        "../../envs/media.yaml"
    params:
        folder=lambda wildcards, output: Path(output.failures).parent,
        settings=lambda wildcards: flags(
            collection=PATHS[wildcards.dataset].collection,
            tables=PATHS[wildcards.dataset].failures_dir,
            max_failed_fraction=CONFIGS[wildcards.dataset]["max_failed_fraction"],
        ),
    shell:
        f"avqa failures {{params.folder:q}} {{params.settings}} {LOG}"


localrules:
    index,
    failures,
