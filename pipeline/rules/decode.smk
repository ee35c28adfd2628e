# Videos to one-second segments: a shard's frames and audio, kept until all encoders have read them.


rule decode:
    input:
        f"{COLLECTION}/shards/{{shard}}.tsv",
    output:
        segments=temp(f"{COLLECTION}/segments/{{shard}}.h5"),
        failures=f"{COLLECTION}/failures/{{shard}}.tsv",
    log:
        f"{COLLECTION}/logs/decode/{{shard}}.log",
    benchmark:
        f"{COLLECTION}/benchmarks/decode/{{shard}}.tsv"
    conda:
        "../../envs/media.yaml"
    threads: config["decode"]["workers"]
    params:
        flags(
            encoder=list(config["encoders"]),
            collection=config["videos"]["collection"],
            **{name: value for name, value in config["decode"].items() if name != "workers"},
        ),
    shell:
        f"avqa decode {{input:q}} --out {{output.segments:q}} --failures {{output.failures:q}} {{params}}"
        f" --workers {{threads}} {LOG}"


rule failures:
    input:
        lambda wildcards: expand(f"{COLLECTION}/failures/{{shard}}.tsv", shard=shards(wildcards)),
    output:
        report(
            f"{COLLECTION}/failures.tsv",
            caption="captions/failures.rst",
            category="Data set",
            labels={"result": "videos that could not be decoded"},
        ),
    log:
        f"{COLLECTION}/logs/failures.log",
    conda:
        "../../envs/media.yaml"
    params:
        settings("results", "dataset", "videos", "max_failed_fraction"),
    shell:
        f"avqa failures --config {{params:q}} {LOG}"
