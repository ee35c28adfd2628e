# Shards to one logical file, features.h5.


rule index:
    input:
        questions=questions,
        features=lambda wildcards: expand(
            f"{COLLECTION}/features/{{encoder}}/{{shard}}.h5", encoder=config["encoders"], shard=shards(wildcards)
        ),
        text=expand(rules.text.output, encoder=text_encoders(config)),
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
