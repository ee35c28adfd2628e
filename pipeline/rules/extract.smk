# Segments and questions to features: frozen encoders, on the GPU if there is one.

FEATURES_FILE = f"{COLLECTION}/features/{{folder}}/{{shard}}.h5"
TEXT_FILE = f"{DATASET}/text/{{text}}.h5"


rule weights:
    output:
        f"{RESULTS}/weights/{{encoder}}/{{tag}}.json",
    log:
        f"{RESULTS}/weights/logs/{{encoder}}-{{tag}}.log",
    wildcard_constraints:
        tag="[^/]+",
    conda:
        "../../envs/torch.yaml"
    shell:
        f"avqa weights --encoder {{wildcards.encoder}} --weights {{wildcards.tag:q}} --out {{output:q}} {LOG}"


localrules:
    weights,


def weights_first(encoder, entry):
    """Weights are downloaded before jobs start: nodes of a cluster have no internet."""
    return [f"{RESULTS}/weights/{encoder}/{entry['weights']}.json"] if is_hub_tag(entry["weights"]) else []


@functools.cache
def extraction(collection, folder):
    """The encoder whose features a folder holds, and the files of a data set that names it."""
    for encoder, files in encoders_of(collection).items():
        if folder in [path.name for path in files.features_folders(encoder)]:
            return encoder, files
    raise WorkflowError(f"{RESULTS}/{collection}/features/{folder}: is not of this configuration")


def extraction_inputs(wildcards):
    encoder, files = extraction(wildcards.collection, wildcards.folder)
    segments = files.segments_file(inputs_of(wildcards.collection), wildcards.shard)
    listed = f"{RESULTS}/{wildcards.collection}/shards/{wildcards.shard}.tsv"
    return [segments, listed, *weights_first(encoder, files.config["encoders"][encoder])]


def extraction_flags(wildcards):
    encoder, files = extraction(wildcards.collection, wildcards.folder)
    outputs = wildcards.folder.split("-")[-2].split("+")
    timing = f"{RESULTS}/{wildcards.collection}/benchmarks/{wildcards.folder}/{wildcards.shard}.json"
    given = files.config["encoders"][encoder] | {"outputs": outputs, "key": files.encoding(encoder).text, "timing": timing}
    return flags(encoder=encoder, **given)


rule extract:
    input:
        unless_made(FEATURES_FILE, extraction_inputs),
    output:
        FEATURES_FILE,
    log:
        f"{COLLECTION}/logs/{{folder}}/{{shard}}.log",
    benchmark:
        f"{COLLECTION}/benchmarks/{{folder}}/{{shard}}.tsv"
    priority: 10  # before more is decoded
    conda:
        "../../envs/torch.yaml"
    threads: CLUSTER.extraction_threads("extract")
    resources:
        gpu=CLUSTER.gpu("extract"),
        mem_mb=CLUSTER.mem_mb("extract"),
        runtime=CLUSTER.runtime("extract"),
    params:
        settings=extraction_flags,
    shell:
        f"avqa extract {{input[0]:q}} --out {{output:q}} {{params.settings}} {LOG}"


def text_encoder(wildcards):
    """The encoder of a file of texts."""
    files = made(wildcards.dataset)
    found = [name for name in text_encoders(files.config) if files.text_file(name).stem == wildcards.text]
    if not found:
        raise WorkflowError(f"{files.folder}/text/{wildcards.text}.h5: is not of this configuration")
    return found[0]


def text_inputs(wildcards):
    encoder, files = text_encoder(wildcards), made(wildcards.dataset)
    return [files.manifest_dir / "questions.parquet", *weights_first(encoder, text_encoders(files.config)[encoder])]


def text_flags(wildcards):
    encoder, files = text_encoder(wildcards), made(wildcards.dataset)
    key = files.text_key(encoder).text
    given = text_encoders(files.config)[encoder] | {"key": key, "prompts": reads_prompts(files.config)}
    return flags(encoder=encoder, dataset=wildcards.dataset, **given)


rule text:
    input:
        unless_made(TEXT_FILE, text_inputs),
    output:
        TEXT_FILE,
    log:
        f"{DATASET}/logs/text/{{text}}.log",
    benchmark:
        f"{DATASET}/benchmarks/text/{{text}}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: CLUSTER.extraction_threads("text")
    resources:
        gpu=CLUSTER.gpu("text"),
        mem_mb=CLUSTER.mem_mb("text"),
        runtime=CLUSTER.runtime("text"),
    params:
        settings=text_flags,
    shell:
        f"avqa text {{input[0]:q}} --out {{output:q}} {{params.settings}} {LOG}"
