# Videos to one-second segments: what the encoders read of a shard, kept until all of them have read it.


rule decode:
    input:
        f"{RESULTS}/shards/{{shard}}.tsv",
    output:
        segments=temp(f"{RESULTS}/segments/{{shard}}.h5"),
        failures=f"{RESULTS}/failures/{{shard}}.tsv",
    params:
        lambda wildcards: flags(
            encoder=list(config["encoders"]),
            **{name: value for name, value in config["decode"].items() if name not in ("workers", "selective")},
            dataset=config["dataset"],
        )
        + ("" if config["decode"]["selective"] else " --no-selective"),
    log:
        f"{RESULTS}/logs/decode/{{shard}}.log",
    threads: config["decode"]["workers"]
    conda:
        "../../envs/media.yaml"
    shell:
        f"avqa decode {{input}} --out {{output.segments}} --failures {{output.failures}} {{params}}"
        f" --workers {{threads}} {LOG}"
