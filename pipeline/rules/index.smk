# Shards to one logical file, features.h5.


rule index:
    input:
        questions=questions,
        features=lambda wildcards: expand(
            f"{COLLECTION}/features/{{encoder}}/{{shard}}.h5", encoder=config["encoders"], shard=shards(wildcards)
        ),
        text=rules.text.output,
        # Too many failed videos stop the run before training; the table alone is no reason to make the index again.
        failures=ancient(f"{COLLECTION}/failures.tsv"),
    output:
        f"{DATASET}/features.h5",
    log:
        f"{DATASET}/logs/index.log",
    conda:
        "../../envs/media.yaml"
    params:
        settings("results", "dataset", "videos", "encoders", "text"),
    shell:
        f"avqa index --config {{params:q}} {LOG}"
