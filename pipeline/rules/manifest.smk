# Annotations and videos to manifest.json, questions.parquet, videos.parquet and shards/<k>.tsv.

SYNTHESIZE = next((each["synthesize"] for each in CONFIGS.values() if "synthesize" in each), None)


def annotations(wildcards):
    return list(dict.fromkeys(path for _, _, path in annotation_files(CONFIGS[wildcards.dataset])))


@functools.cache
def fingerprint(collection):
    return videos_fingerprint(SETTINGS_OF[collection]["videos"])


def state_of_videos(wildcards):
    """What makes the manifest due when a video appears, vanishes or is replaced."""
    if SYNTHESIZE:
        return "synthesized"  # they change with the annotations that come with them
    try:
        return fingerprint(collection_of(wildcards))
    except OSError as error:
        raise WorkflowError(f"videos.folder: {error}; see README.md for what goes there")


if SYNTHESIZE:

    rule synthesize:
        output:
            sorted({path for each in CONFIGS.values() for _, _, path in annotation_files(each)}),
        log:
            f"{RESULTS}/{next(iter(CONFIGS))}/logs/synthesize.log",
        conda:
            "../../envs/media.yaml"
        threads: 8
        params:
            flags(out=SYNTHESIZE["folder"], **{k: SYNTHESIZE[k] for k in ("clips", "seconds", "seed")}),
        shell:
            f"avqa synthesize {{params}} {LOG}"


# One at a time and in the configuration's order, so that the shards of a collection are the same in every run.
localrules:
    synthesize,
    manifest,


checkpoint manifest:
    input:
        annotations,
    output:
        manifest=f"{DATASET}/manifest.json",
        questions=f"{DATASET}/questions.parquet",
        absent=f"{DATASET}/absent.tsv",
    log:
        f"{DATASET}/logs/manifest.log",
    priority: 100
    conda:
        "../../envs/manifest.yaml"
    threads: workflow.cores or 1
    params:
        videos=state_of_videos,
        settings=settings(
            "results",
            "dataset",
            "videos",
            "annotations",
            "format",
            "card",
            "answers",
            "video_ids",
            "trained_on",
            "allow_missing",
            "shard_size",
        ),
    shell:
        f"avqa manifest --config {{params.settings:q}} {LOG}"
