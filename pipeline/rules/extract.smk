# Segments and questions to features: frozen encoders, on the GPU if there is one.


def segments(wildcards):
    """A shard's segments, unless the encoder's features are up to date: they are temporary, and what only another
    encoder needs must not make this one's features due."""
    if workflow.is_main_process and is_made(wildcards, wildcards.encoder, wildcards.shard):
        return []
    folder = SEGMENTS.format(collection=wildcards.collection)
    return f"{folder}/{inputs_of(wildcards.collection)}/{wildcards.shard}.h5"


def batch_size(wildcards, threads):
    return flags(batch_size=ENCODERS_OF[wildcards.collection][wildcards.encoder]["batch_size"])


rule extract:
    input:
        shard=f"{COLLECTION}/shards/{{shard}}.tsv",
        segments=segments,
    output:
        f"{COLLECTION}/features/{{encoder}}/{{shard}}.h5",
    log:
        f"{COLLECTION}/logs/{{encoder}}/{{shard}}.log",
    priority: 10  # before more is decoded
    conda:
        "../../envs/torch.yaml"
    threads: extraction_threads
    resources:
        gpu=gpu,
        mem_mb=mem_mb("extract"),
        runtime=runtime("extract"),
    params:
        settings=extraction_settings,
        weights=lambda wildcards, threads: weights_flags(ENCODERS_OF[wildcards.collection][wildcards.encoder]),
        batch_size=batch_size,
    shell:
        "avqa extract {input.segments:q} --out {output:q} --encoder {wildcards.encoder} {params.weights}"
        f" {{params.batch_size}} {LOG}"


def shards(wildcards):
    """The shards that hold the data set's videos, or those of training only."""
    return manifest_of(wildcards)["shards" if wildcards.use == "all" else "training_shards"]


# Says that an encoder has read all of a data set's shards, or all that its training needs. What depends on an encoder
# depends on this file, and not on others' features.
rule extracted:
    input:
        lambda wildcards: expand(
            f"{RESULTS}/{collection_of(wildcards)}/features/{wildcards.encoder}/{{shard}}.h5", shard=shards(wildcards)
        ),
    output:
        touch(f"{DATASET}/extracted/{{use}}/{{encoder}}"),
    params:
        lambda wildcards: json.dumps(shards(wildcards)),


def text_settings(wildcards):
    """What decides the text features that a job reads."""
    encoders = text_encoders(CONFIGS[wildcards.dataset]).items()
    return " ".join(weights_flags({"encoder": name, **entry}) for name, entry in encoders)


def text_settings_of(wildcards):
    """Of one text encoder."""
    return text_encoders(CONFIGS[wildcards.dataset])[wildcards.encoder]


rule text:
    input:
        questions,
    output:
        f"{DATASET}/text/{{encoder}}.h5",
    log:
        f"{DATASET}/logs/text/{{encoder}}.log",
    conda:
        "../../envs/torch.yaml"
    threads: extraction_threads
    resources:
        gpu=gpu,
        mem_mb=mem_mb("text"),
        runtime=runtime("text"),
    params:
        settings=lambda wildcards: weights_flags({"encoder": wildcards.encoder, **text_settings_of(wildcards)}),
        texts=from_manifest("texts"),
        batch_size=lambda wildcards, threads: flags(batch_size=text_settings_of(wildcards)["batch_size"]),
    shell:
        "avqa text {input:q} --out {output:q} --dataset {wildcards.dataset} {params.settings} {params.batch_size}"
        f" {LOG}"
