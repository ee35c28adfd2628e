# Annotations and videos to questions and shards.

SYNTHESIZE = next((values["synthesize"] for values in CONFIGS.values() if "synthesize" in values), None)
MANIFEST = f"{DATASET}/manifests/{{key}}/manifest.json"


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


def manifest_before(wildcards):
    """The manifest of the data set before this one with the same collection: in the configuration's order, so that the
    shards of a collection are the same in every run."""
    names = [files.name for files in COLLECTIONS[PATHS[wildcards.dataset].collection.name]]
    before = names[: names.index(wildcards.dataset)][-1:]
    return [PATHS[name].manifest_dir / "manifest.json" for name in before]


checkpoint manifest:
    input:
        annotations=unless_made(MANIFEST, lambda wildcards: source_files(CONFIGS[wildcards.dataset])),
        before=unless_made(MANIFEST, manifest_before),
    output:
        manifest=MANIFEST,
        questions=f"{DATASET}/manifests/{{key}}/questions.parquet",
        left_out=f"{DATASET}/manifests/{{key}}/left_out.parquet",
        absent=f"{DATASET}/manifests/{{key}}/absent.tsv",
    log:
        f"{DATASET}/logs/manifest/{{key}}.log",
    priority: 100
    conda:
        "../../envs/manifest.yaml"
    params:
        settings=lambda wildcards: json.dumps(CONFIGS[wildcards.dataset], sort_keys=True),
        folder=lambda wildcards, output: Path(output.manifest).parent,
        key=lambda wildcards: PATHS[wildcards.dataset].manifest_key.text,
    shell:
        f"avqa manifest --config {{params.settings:q}} --out {{params.folder:q}} --key {{params.key:q}} {LOG}"


rule manifests:
    input:
        [files.manifest_dir / "manifest.json" for files in PATHS.values()],


# The manifest writes the lists of all shards; this makes one again that was lost.
rule shard_list:
    output:
        f"{COLLECTION}/shards/{{shard}}.tsv",
    log:
        f"{COLLECTION}/logs/shards/{{shard}}.log",
    conda:
        "../../envs/manifest.yaml"
    shell:
        f"avqa shard-list {{output:q}} {LOG}"
