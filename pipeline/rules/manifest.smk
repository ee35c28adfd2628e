# Annotations and videos to questions.parquet, videos.parquet and shards/<k>.tsv.

if "synthesize" in config:

    checkpoint synthesize:
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
            f"{AVQA} synthesize {{params}} {LOG}"


def videos_as_they_are(wildcards):
    """What makes the manifest due when a video appears, vanishes or is replaced."""
    if "synthesize" in config:
        checkpoints.synthesize.get()
    try:
        return videos_fingerprint(config["videos"])
    except OSError as error:
        raise WorkflowError(f"videos.folder: {error}; see README.md for what goes there")


checkpoint manifest:
    input:
        annotations=list(config["annotations"].values()),
    output:
        # Kept, and rewritten only where they change: what did not change makes nothing due. The shards are not
        # outputs, because Snakemake would delete them all before it runs this rule again.
        questions=update(f"{RESULTS}/questions.parquet"),
        videos=update(f"{RESULTS}/videos.parquet"),
    params:
        videos=videos_as_they_are,
        settings=[config["videos"], config["annotations"], config["allow_missing"], config["shard_size"]],
    log:
        f"{RESULTS}/logs/manifest.log",
    conda:
        "../../envs/manifest.yaml"
    shell:
        f"{AVQA} manifest --config {CONFIG} {LOG}"


def shards(wildcards):
    """The numbers of all shards, once the manifest has made them."""
    checkpoints.manifest.get()
    return [tsv.stem for tsv in sorted(Path(RESULTS, "shards").glob("*.tsv"))]
