# Videos to one-second segments: a shard's frames and audio, kept until all encoders have read them.


def inputs_of(collection):
    """The inputs that a collection's encoders read, as the name of a folder."""
    keys = {item.key for name in ENCODERS_OF[collection] for item in ENCODERS[name].inputs}
    return "+".join(key.replace("/", "-") for key in sorted(keys))


def decode_settings(collection):
    """What decides a segment."""
    own = SETTINGS_OF[collection]["decode"]
    return {name: value for name, value in own.items() if name not in ("workers", "ahead")}


def features_file(wildcards, encoder, shard):
    return f"{RESULTS}/{wildcards.collection}/features/{encoder}/{shard}.h5"


def extraction_settings(wildcards):
    """What decides an encoder's features."""
    flags_of_encoder = weights_flags(ENCODERS_OF[wildcards.collection][wildcards.encoder])
    return f"{flags_of_encoder} {flags(**decode_settings(wildcards.collection))}"


def is_made(wildcards, encoder, shard):
    """Whether features are there and up to date. Then their segments are of no use, although they are a missing input."""
    of = Wildcards(fromdict={"collection": wildcards.collection, "encoder": encoder})
    listed = f"{RESULTS}/{wildcards.collection}/shards/{shard}.tsv"
    return is_current(features_file(wildcards, encoder, shard), [listed], [extraction_settings(of)])


def read_before(wildcards):
    """The features that must be there before a shard is decoded: those of the shard `ahead` places before it that this
    run makes. So the segments of no more than `ahead` shards are on the disk, whatever the scheduler does."""
    ahead, encoders = SETTINGS_OF[wildcards.collection]["decode"]["ahead"], ENCODERS_OF[wildcards.collection]
    for n in range(int(wildcards.shard) - ahead, -1, -ahead) if workflow.is_main_process else ():
        due = [encoder for encoder in encoders if not is_made(wildcards, encoder, f"{n:05d}")]
        if due:
            return [features_file(wildcards, encoder, f"{n:05d}") for encoder in due]
    return []


rule decode:
    input:
        shard=f"{COLLECTION}/shards/{{shard}}.tsv",
        before=read_before,
    output:
        temp(f"{SEGMENTS}/{{inputs}}/{{shard}}.h5"),
    log:
        f"{COLLECTION}/logs/decode/{{inputs}}/{{shard}}.log",
    conda:
        "../../envs/media.yaml"
    threads: lambda wildcards: threads_for(SETTINGS_OF[wildcards.collection]["decode"]["workers"])
    resources:
        mem_mb=mem_mb("decode"),
        runtime=runtime("decode"),
    params:
        settings=lambda wildcards: flags(collection=wildcards.collection, **decode_settings(wildcards.collection)),
        encoders=lambda wildcards, threads: flags(encoder=list(ENCODERS_OF[wildcards.collection])),
        failures=lambda wildcards, threads: f"{RESULTS}/{wildcards.collection}/failures/{wildcards.shard}.tsv",
    shell:
        "avqa decode {input.shard:q} --out {output:q} --failures {params.failures:q} {params.encoders} {params.settings}"
        f" --workers {{threads}} {LOG}"
