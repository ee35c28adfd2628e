# Annotations and videos to questions.parquet, videos.parquet and shards/<k>.tsv.

if "synthesize" in config:

    rule synthesize:
        output:
            *config["annotations"].values(),
        params:
            flags(
                out=config["synthesize"]["folder"],
                clips=config["synthesize"]["clips"],
                seconds=config["synthesize"]["seconds"],
                seed=config["synthesize"]["seed"],
            ),
        log:
            f"{RESULTS}/logs/synthesize.log",
        threads: 8
        conda:
            "../../envs/media.yaml"
        shell:
            f"avqa synthesize {{params}} {LOG}"


def videos_as_they_are(wildcards):
    """What makes the manifest due when a video appears, vanishes or is replaced."""
    if "synthesize" in config:
        return "synthesized"  # they change with the annotations that come with them
    try:
        return videos_fingerprint(config["videos"])
    except OSError as error:
        raise WorkflowError(f"videos.folder: {error}; see README.md for what goes there")


# questions.parquet and the shards are rewritten only where they change, so that what did not change makes nothing
# due. They are no outputs, because Snakemake holds that a job that ran has changed all of its outputs.
checkpoint manifest:
    input:
        list(config["annotations"].values()),
    output:
        f"{RESULTS}/videos.parquet",
    params:
        videos=videos_as_they_are,
        settings=[config[name] for name in ("videos", "annotations", "allow_missing", "shard_size")],
    log:
        f"{RESULTS}/logs/manifest.log",
    conda:
        "../../envs/manifest.yaml"
    shell:
        f"avqa manifest --config {CONFIG} {LOG}"


def questions(wildcards):
    """questions.parquet, once the manifest has made it."""
    checkpoints.manifest.get()
    return f"{RESULTS}/questions.parquet"


def shards(wildcards):
    """The numbers of all shards, once the manifest has made them."""
    checkpoints.manifest.get()
    return [tsv.stem for tsv in sorted(Path(RESULTS, "shards").glob("*.tsv"))]
