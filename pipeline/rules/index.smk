# Shards to one logical file, features.h5, and one list of failures.


rule index:
    input:
        features=lambda wildcards: expand(
            f"{RESULTS}/{{encoder}}/{{shard}}.h5", encoder=config["encoders"], shard=shards(wildcards)
        ),
        failures=lambda wildcards: expand(f"{RESULTS}/failures/{{shard}}.tsv", shard=shards(wildcards)),
        text=rules.text.output,
    output:
        features=f"{RESULTS}/features.h5",
        failures=f"{RESULTS}/failures.tsv",
    params:
        config["max_failed_fraction"],
    log:
        f"{RESULTS}/logs/index.log",
    conda:
        "../../envs/media.yaml"
    shell:
        f"avqa index --config {CONFIG} {LOG}"
