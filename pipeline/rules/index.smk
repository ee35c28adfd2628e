# Shards to one logical file, features.h5, and the list of what is missing.


def index_settings(wildcards):
    own = CONFIGS[wildcards.dataset]
    encoders = {name: {"weights": ""} for name in own["encoders"]}
    others = {name: {"weights": ""} for name in own["text"]["others"]}
    text = {"encoder": own["text"]["encoder"], "weights": "", "others": others}
    return settings("results", "dataset", "videos", "trained_on", encoders=encoders, text=text)(wildcards)


def failures_settings(wildcards):
    return settings("results", "dataset", "videos", "trained_on", "max_failed_fraction")(wildcards)


def decoded_with(wildcards):
    return flags(**decode_settings(collection_of(wildcards)))


def read_by_all(wildcards):
    """That all encoders have read the data set's videos."""
    folder = f"{RESULTS}/{wildcards.dataset}/extracted/all"
    return [f"{folder}/{encoder}" for encoder in CONFIGS[wildcards.dataset]["encoders"]]


def text_files(wildcards):
    """One file of each text encoder."""
    return [f"{RESULTS}/{wildcards.dataset}/text/{encoder}.h5" for encoder in text_encoders(CONFIGS[wildcards.dataset])]


def failures_first(wildcards):
    """Too many failed videos stop the run before training; the table alone is no reason to make the index again."""
    folder, inputs = f"{RESULTS}/{wildcards.dataset}", [*read_by_all(wildcards), *text_files(wildcards)]
    params = [index_settings, from_manifest("shards", "video_ids")]
    return ordered(f"{folder}/failures.tsv", wildcards, f"{folder}/features.h5", inputs, params)


def decoded_first(wildcards):
    """The tables of failures are there when the encoders have read all."""
    before, params = f"{RESULTS}/{wildcards.dataset}/failures.tsv", [failures_settings, decoded_with]
    params.append(from_manifest("shards", "training", "test"))
    return [ordered(path, wildcards, before, [], params) for path in read_by_all(wildcards)]


rule index:
    input:
        questions=questions,
        extracted=read_by_all,
        text=text_files,
        failures=failures_first,
    output:
        f"{DATASET}/features.h5",
    log:
        f"{DATASET}/logs/index.log",
    conda:
        "../../envs/media.yaml"
    params:
        settings=index_settings,
        videos=from_manifest("shards", "video_ids"),
    shell:
        f"avqa index --config {{params.settings:q}} {LOG}"


rule failures:
    input:
        questions=questions,
        extracted=decoded_first,
    output:
        failures=f"{DATASET}/failures.tsv",
        missing=f"{DATASET}/missing.tsv",
    log:
        f"{DATASET}/logs/failures.log",
    conda:
        "../../envs/media.yaml"
    params:
        settings=failures_settings,
        decode=decoded_with,
        videos=from_manifest("shards", "training", "test"),
    shell:
        f"avqa failures --config {{params.settings:q}} {LOG}"
