# Shards to one logical file, features.h5, and the list of what is missing.


rule index:
    input:
        questions=questions,
        extracted=lambda wildcards: expand(
            f"{DATASET}/extracted/all/{{encoder}}",
            dataset=wildcards.dataset,
            encoder=CONFIGS[wildcards.dataset]["encoders"],
        ),
        text=lambda wildcards: expand(
            rules.text.output, dataset=wildcards.dataset, encoder=text_encoders(CONFIGS[wildcards.dataset])
        ),
    output:
        f"{DATASET}/features.h5",
    log:
        f"{DATASET}/logs/index.log",
    conda:
        "../../envs/media.yaml"
    params:
        settings=lambda wildcards: settings(
            "results",
            "dataset",
            "videos",
            "trained_on",
            encoders={name: {"weights": ""} for name in CONFIGS[wildcards.dataset]["encoders"]},
            text={
                "encoder": CONFIGS[wildcards.dataset]["text"]["encoder"],
                "weights": "",
                "others": {name: {"weights": ""} for name in CONFIGS[wildcards.dataset]["text"]["others"]},
            },
        )(wildcards),
        videos=from_manifest("shards", "video_ids"),
    shell:
        f"avqa index --config {{params.settings:q}} {LOG}"


rule failures:
    input:
        questions=questions,
        extracted=lambda wildcards: [
            ancient(f"{RESULTS}/{wildcards.dataset}/extracted/all/{encoder}")
            for encoder in CONFIGS[wildcards.dataset]["encoders"]
        ],
    output:
        failures=f"{DATASET}/failures.tsv",
        missing=f"{DATASET}/missing.tsv",
    log:
        f"{DATASET}/logs/failures.log",
    conda:
        "../../envs/media.yaml"
    params:
        settings=settings("results", "dataset", "videos", "trained_on", "max_failed_fraction", "decode"),
        videos=from_manifest("shards", "training", "test"),
    shell:
        f"avqa failures --config {{params.settings:q}} {LOG}"
