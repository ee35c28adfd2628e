# Videos to one-second segments: a shard's frames and audio, kept until all encoders have read them.

# Where all jobs run on one machine, segments may be on a disk of its own.
SEGMENTS = f"{os.path.expandvars(next(iter(CONFIGS.values()))['scratch']) or RESULTS}/{{collection}}/segments/{{folder}}"
SEGMENTS_FILE = f"{SEGMENTS}/{{shard}}.h5"


def encoders_of(collection):
    """The encoders of a collection: the files of a data set that names each."""
    return {name: files for files in COLLECTIONS[collection] for name in files.config["encoders"]}


def inputs_of(collection):
    """The inputs that a collection's encoders read, for the name of a folder."""
    keys = {item.key for name in encoders_of(collection) for item in ENCODERS[name].inputs}
    return "+".join("-".join(Path(key).parts) for key in sorted(keys))


def read_before(wildcards):
    """The features that must be there before a shard is decoded: those of the shard `ahead` places before it that are
    not. So the segments of no more than `ahead` shards are on the disk, whatever the scheduler does. (A resource of
    Snakemake's could not count them: a job holds it only while it runs, and segments stay until they are read.)"""
    files = COLLECTIONS[wildcards.collection][0]
    shards = shards_of(wildcards.collection)
    place, ahead = shards.index(wildcards.shard), files.config["decode"]["ahead"]
    for n in range(place - ahead, -1, -ahead):
        lacking = [path for path in features_of_shard(wildcards.collection, shards[n]) if not os.path.exists(path)]
        if lacking:
            return lacking
    return []


@functools.cache
def shards_of(collection):
    """The shards of all data sets of a collection that this run makes."""
    return sorted({shard for files in wanted(collection) for shard in made(files.name).manifest["shards"]})


def wanted(collection):
    """The data sets of a collection that this run makes: those named as targets with the ones that their models are
    trained on, or else all."""
    named = {*workflow.dag_settings.targets} & CONFIGS.keys() or {*CONFIGS}
    named |= {trained_on for name in named for trained_on in CONFIGS[name]["trained_on"]}
    return [files for files in COLLECTIONS[collection] if files.name in named]


def features_of_shard(collection, shard):
    """The features of a shard, one file of each encoder that reads it in this run."""
    files = {e: f for f in wanted(collection) if shard in f.manifest["shards"] for e in f.config["encoders"]}
    return [of.features_file(encoder, shard) for encoder, of in files.items()]


rule decode:
    input:
        shard=unless_made(SEGMENTS_FILE, lambda wildcards: f"{COLLECTION}/shards/{wildcards.shard}.tsv".format(**wildcards)),
        before=unless_made(SEGMENTS_FILE, read_before),
    output:
        temp(SEGMENTS_FILE),
    log:
        f"{COLLECTION}/logs/decode/{{folder}}/{{shard}}.log",
    benchmark:
        f"{COLLECTION}/benchmarks/decode/{{folder}}/{{shard}}.tsv"
    conda:
        "../../envs/media.yaml"
    threads: lambda wildcards: CLUSTER.threads("decode", COLLECTIONS[wildcards.collection][0].config["decode"]["workers"])
    resources:
        gpu=lambda wildcards: CLUSTER.decode_gpu(COLLECTIONS[wildcards.collection][0].config["decode"]["backend"]),
        mem_mb=CLUSTER.mem_mb("decode"),
        runtime=CLUSTER.runtime("decode"),
    params:
        settings=lambda wildcards: flags(
            collection=wildcards.collection,
            encoder=list(encoders_of(wildcards.collection)),
            failures=COLLECTIONS[wildcards.collection][0].failures_dir / f"{wildcards.shard}.tsv",
            key=COLLECTIONS[wildcards.collection][0].decoding.text,
            timing=f"{RESULTS}/{wildcards.collection}/benchmarks/decode/{wildcards.folder}/{wildcards.shard}.json",
            **{name: value for name, value in COLLECTIONS[wildcards.collection][0].config["decode"].items() if name not in ("workers", "ahead")},
        ),
    shell:
        f"avqa decode {{input.shard:q}} --out {{output:q}} --workers {{threads}} {{params.settings}} {LOG}"
