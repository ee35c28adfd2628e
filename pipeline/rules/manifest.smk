# Annotations and videos to questions.parquet, shards.txt, videos.parquet and shards/<k>.tsv.

if "synthesize" in config:

    rule synthesize:
        output:
            *config["annotations"].values(),
        log:
            f"{DATASET}/logs/synthesize.log",
        conda:
            "../../envs/media.yaml"
        threads: 8
        params:
            flags(
                out=config["synthesize"]["folder"],
                clips=config["synthesize"]["clips"],
                seconds=config["synthesize"]["seconds"],
                seed=config["synthesize"]["seed"],
            ),
        shell:
            f"avqa synthesize {{params}} {LOG}"


# questions.parquet and the shards are rewritten only where they change, so that what did not change makes nothing
# due. They are no outputs, because Snakemake holds that a job that ran has changed all of its outputs.
checkpoint manifest:
    input:
        list(config["annotations"].values()),
    output:
        f"{DATASET}/shards.txt",
    log:
        f"{DATASET}/logs/manifest.log",
    conda:
        "../../envs/manifest.yaml"
    params:
        videos=state_of_videos,
        settings=settings("results", "dataset", "videos", "annotations", "format", "allow_missing", "shard_size"),
    shell:
        f"avqa manifest --config {{params.settings:q}} {LOG}"
