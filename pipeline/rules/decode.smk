# Videos to one-second segments: frames and sound of a shard, kept until all encoders have read them.


rule decode:
    input:
        f"{RESULTS}/shards/{{shard}}.tsv",
    output:
        segments=temp(f"{RESULTS}/segments/{{shard}}.h5"),
        failures=f"{RESULTS}/failures/{{shard}}.tsv",
    params:
        lambda wildcards: flags(
            size=FRAME_SIZES or None,
            **{name: value for name, value in config["decode"].items() if name != "workers"},
            dataset=config["dataset"],
        ),
    log:
        f"{RESULTS}/logs/decode/{{shard}}.log",
    threads: config["decode"]["workers"]
    conda:
        "../../envs/media.yaml"
    shell:
        f"avqa decode {{input}} --out {{output.segments}} --failures {{output.failures}} {{params}}"
        f" --workers {{threads}} {LOG}"
