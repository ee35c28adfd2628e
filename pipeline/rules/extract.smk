# Segments and questions to features: frozen encoders, on the GPU if there is one.


rule extract:
    input:
        f"{COLLECTION}/segments/{{shard}}.h5",
    output:
        f"{COLLECTION}/features/{{encoder}}/{{shard}}.h5",
    params:
        lambda wildcards: flags(encoder=wildcards.encoder, **config["encoders"][wildcards.encoder]),
    log:
        f"{COLLECTION}/logs/{{encoder}}/{{shard}}.log",
    threads: 8
    resources:
        gpu=1,
    conda:
        "../../envs/torch.yaml"
    shell:
        f"avqa extract {{input:q}} --out {{output:q}} {{params}} {LOG}"


rule text:
    input:
        questions,
    output:
        f"{DATASET}/text/{config['text']['encoder']}.h5",
    params:
        flags(dataset=config["dataset"], **config["text"]),
    log:
        f"{DATASET}/logs/text.log",
    threads: 8
    resources:
        gpu=1,
    conda:
        "../../envs/torch.yaml"
    shell:
        f"avqa text {{input:q}} --out {{output:q}} {{params}} {LOG}"
