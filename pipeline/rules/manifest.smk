# Annotations and videos to questions and shards.

SYNTHESIZE = next((values["synthesize"] for values in CONFIGS.values() if "synthesize" in values), None)
MANIFEST_FILES = [f"{RESULTS}/{paths.MANIFEST_DIR}/{name}" for name in MANIFEST]


if SYNTHESIZE:

    localrules:
        synthesize,

    rule synthesize:
        output:
            sorted({path for values in CONFIGS.values() for path in source_files(values)}),
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
    shard_list,


checkpoint manifest:
    input:
        annotations=unless_made(MANIFEST_FILES, JOBS.annotations),
        before=unless_made(MANIFEST_FILES, JOBS.manifest_before),
    output:
        MANIFEST_FILES,
    log:
        f"{DATASET}/logs/manifest/{{key}}.log",
    priority: 100
    conda:
        "../../envs/manifest.yaml"
    params:
        settings=JOBS.manifest_flags,
        folder=lambda wildcards, output: Path(output[0]).parent,
    shell:
        f"avqa manifest {{params.settings}} --out {{params.folder:q}} {LOG}"


rule manifests:
    input:
        [files.manifest_dir / "manifest.json" for files in JOBS.paths.values()],


# The manifest writes the lists of all shards; this makes one again that was lost.
rule shard_list:
    output:
        f"{RESULTS}/{paths.SHARD_LIST}",
    log:
        f"{COLLECTION}/logs/shards/{{shard}}.log",
    conda:
        "../../envs/manifest.yaml"
    shell:
        f"avqa shard-list {{output:q}} {LOG}"
