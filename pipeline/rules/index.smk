# Shards to one logical file, features.h5, whose numbers are then checked, and the list of what is missing.


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


rule verify:
    input:
        index=rules.index.output,
        questions=questions,
    output:
        f"{DATASET}/verify.json",
    log:
        f"{DATASET}/logs/verify.log",
    conda:
        "../../envs/media.yaml"
    shell:
        f"avqa verify {{input.index:q}} --json {{output:q}} {LOG}"


rule failures:
    input:
        questions=questions,
        extracted=decoded_first,
    output:
        failures=report(
            f"{DATASET}/failures.tsv",
            caption="captions/failures.rst",
            category="Data set",
            labels={"data set": "{dataset}", "result": "videos that could not be decoded"},
        ),
        missing=report(
            f"{DATASET}/missing.tsv",
            caption="captions/missing.rst",
            category="Data set",
            labels={"data set": "{dataset}", "result": "questions of missing videos"},
        ),
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
