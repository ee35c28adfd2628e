# Segments and questions to features: frozen encoders, on the GPU if there is one.


rule extract:
    input:
        f"{COLLECTION}/segments/{{shard}}.h5",
    output:
        f"{COLLECTION}/features/{{encoder}}/{{shard}}.h5",
    log:
        f"{COLLECTION}/logs/{{encoder}}/{{shard}}.log",
    benchmark:
        f"{COLLECTION}/benchmarks/{{encoder}}/{{shard}}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 8
    resources:
        gpu=1,
    params:
        flags=lambda wildcards: flags(encoder=wildcards.encoder, **config["encoders"][wildcards.encoder]),
        weights=lambda wildcards: state_of_weights(
            f"encoders.{wildcards.encoder}", config["encoders"][wildcards.encoder]
        ),
    shell:
        f"avqa extract {{input:q}} --out {{output:q}} {{params.flags}} {LOG}"


rule text:
    input:
        questions,
    output:
        f"{DATASET}/text/{config['text']['encoder']}.h5",
    log:
        f"{DATASET}/logs/text.log",
    benchmark:
        f"{DATASET}/benchmarks/text.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 8
    resources:
        gpu=1,
    params:
        flags=flags(dataset=config["dataset"], **config["text"]),
        weights=state_of_weights("text", config["text"]),
    shell:
        f"avqa text {{input:q}} --out {{output:q}} {{params.flags}} {LOG}"
