# Segments and questions to features: frozen encoders, on the GPU if there is one.


rule extract:
    input:
        f"{RESULTS}/segments/{{shard}}.h5",
    output:
        f"{RESULTS}/{{encoder}}/{{shard}}.h5",
    params:
        lambda wildcards: flags(encoder=wildcards.encoder, **config["encoders"][wildcards.encoder]),
    log:
        f"{RESULTS}/logs/{{encoder}}/{{shard}}.log",
    threads: 8
    resources:
        gpu=1,
    conda:
        "../../envs/torch.yaml"
    shell:
        f"avqa extract {{input}} --out {{output}} {{params}} {LOG}"


rule text:
    input:
        questions,
    output:
        f"{RESULTS}/{config['text']['encoder']}/text.h5",
    params:
        flags(dataset=config["dataset"], **config["text"]),
    log:
        f"{RESULTS}/logs/text.log",
    threads: 8
    resources:
        gpu=1,
    conda:
        "../../envs/torch.yaml"
    shell:
        f"avqa text {{input}} --out {{output}} {{params}} {LOG}"
