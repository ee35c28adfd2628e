# Annotations and videos to manifest.json, questions.parquet, videos.parquet and shards/<k>.tsv.

SYNTHESIZE = next((each["synthesize"] for each in CONFIGS.values() if "synthesize" in each), None)


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


localrules:
    manifest,


checkpoint manifest:
    input:
        annotations=annotations,
        before=manifest_before,
    output:
        manifest=f"{DATASET}/manifest.json",
        questions=f"{DATASET}/questions.parquet",
        left_out=f"{DATASET}/left_out.parquet",
        absent=f"{DATASET}/absent.tsv",
    log:
        f"{DATASET}/logs/manifest.log",
    priority: 100
    conda:
        "../../envs/manifest.yaml"
    params:
        annotations=state_of_annotations,
        videos=state_of_videos,
        settings=manifest_settings,
        numbers=NUMBERS,
    shell:
        f"avqa manifest --config {{params.settings:q}} {LOG}"
