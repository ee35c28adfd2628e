# Segments and questions to features: frozen encoders, on the GPU if there is one.


rule extract:
    input:
        f"{COLLECTION}/segments/{{shard}}.h5",
    output:
        f"{COLLECTION}/features/{{encoder}}/{{shard}}.h5",
    log:
        f"{COLLECTION}/logs/{{encoder}}/{{shard}}.log",
    conda:
        "../../envs/torch.yaml"
    threads: 8
    resources:
        gpu=1,
    params:
        lambda wildcards: flags(encoder=wildcards.encoder, **config["encoders"][wildcards.encoder]),
    shell:
        f"avqa extract {{input:q}} --out {{output:q}} {{params}} {LOG}"


rule text:
    input:
        questions,
    output:
        f"{DATASET}/text/{{encoder}}.h5",
    log:
        f"{DATASET}/logs/text/{{encoder}}.log",
    conda:
        "../../envs/torch.yaml"
    threads: 8
    resources:
        gpu=1,
    params:
        lambda wildcards: flags(
            dataset=config["dataset"], encoder=wildcards.encoder, **text_encoders(config)[wildcards.encoder]
        ),
    shell:
        f"avqa text {{input:q}} --out {{output:q}} {{params}} {LOG}"
