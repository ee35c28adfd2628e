# Videos to one-second segments: a shard's frames and audio, kept until all encoders have read them.

# Where all jobs run on one machine, segments may be on a disk of its own.
SEGMENTS_FILE = f"{os.path.expandvars(next(iter(CONFIGS.values()))['scratch']) or RESULTS}/{paths.SEGMENTS}"


rule decode:
    input:
        shard=unless_made(SEGMENTS_FILE, JOBS.shard_list),
        before=unless_made(SEGMENTS_FILE, JOBS.read_before),
    output:
        temp(SEGMENTS_FILE),
    log:
        f"{COLLECTION}/logs/decode/{{folder}}/{{shard}}.log",
    benchmark:
        f"{COLLECTION}/benchmarks/decode/{{folder}}/{{shard}}.tsv"
    conda:
        "../../envs/media.yaml"
    threads: lambda wildcards: CLUSTER.threads("decode", JOBS.decode(wildcards)["workers"])
    resources:
        gpu=lambda wildcards: CLUSTER.decode_gpu(JOBS.decode(wildcards)["backend"]),
        mem_mb=CLUSTER.mem_mb("decode"),
        runtime=CLUSTER.runtime("decode"),
    params:
        settings=JOBS.decode_flags,
    shell:
        f"avqa decode {{input.shard:q}} --out {{output:q}} --workers {{threads}} {{params.settings}} {LOG}"
