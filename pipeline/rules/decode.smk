# Videos to one-second segments: a shard's frames and audio, kept until all encoders have read them.


rule decode:
    input:
        shard=f"{COLLECTION}/shards/{{shard}}.tsv",
        before=read_before,
    output:
        temp(f"{SEGMENTS}/{{inputs}}/{{shard}}.h5"),
    log:
        f"{COLLECTION}/logs/decode/{{inputs}}/{{shard}}.log",
    benchmark:
        f"{COLLECTION}/benchmarks/decode/{{inputs}}/{{shard}}.tsv"
    conda:
        "../../envs/media.yaml"
    threads: lambda wildcards: threads_for("decode", SETTINGS_OF[wildcards.collection]["decode"]["workers"])
    resources:
        gpu=lambda wildcards: (
            gpu("decode")(wildcards) if SETTINGS_OF[wildcards.collection]["decode"]["backend"] == "nvdec" else 0
        ),
        mem_mb=mem_mb("decode"),
        runtime=runtime("decode"),
    params:
        settings=decode_flags,
        decoder=DECODER_VERSION,  # no option, but it decides numbers
        encoders=lambda wildcards, threads: flags(encoder=list(ENCODERS_OF[wildcards.collection])),
        failures=lambda wildcards, threads: f"{RESULTS}/{wildcards.collection}/failures/{wildcards.shard}.tsv",
        timing=timing_in(f"{COLLECTION}/benchmarks/decode/{{inputs}}/{{shard}}.json"),
    shell:
        "avqa decode {input.shard:q} --out {output:q} --failures {params.failures:q} {params.encoders} {params.settings}"
        f" --workers {{threads}} --timing {{params.timing:q}} {LOG}"
