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

    localrules:
        synthesize,

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


def manifest_before(wildcards):
    """The manifest of the data set before this one with the same collection, if this run makes both: in the
    configuration's order, so that the shards of a collection are the same in every run."""
    asked = set(workflow.dag_settings.targets)
    if asked and asked <= CONFIGS.keys():
        asked |= {trained_on for name in asked for trained_on in CONFIGS[name]["trained_on"]}
    wanted = [name for name in CONFIGS if name in asked or not asked <= CONFIGS.keys() or not asked]
    names = [name for name in wanted if CONFIGS[name]["videos"]["collection"] == collection_of(wildcards)]
    if not workflow.is_main_process or wildcards.dataset not in names or wildcards.dataset == names[0]:
        return []
    return f"{RESULTS}/{names[names.index(wildcards.dataset) - 1]}/manifest.json"


localrules:
    manifest,


checkpoint manifest:
    input:
        annotations=annotations,
        before=manifest_before,
    output:
        manifest=f"{DATASET}/manifest.json",
        questions=f"{DATASET}/questions.parquet",
        absent=f"{DATASET}/absent.tsv",
    log:
        f"{DATASET}/logs/manifest.log",
    conda:
        "../../envs/manifest.yaml"
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
