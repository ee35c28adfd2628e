# Segments and questions to features: frozen encoders, on the GPU if there is one.

FEATURES_FILE = f"{RESULTS}/{paths.FEATURES}"
TEXT_FILE = f"{RESULTS}/{paths.TEXT}"


rule weights:
    output:
        f"{RESULTS}/weights/{{encoder}}/{{tag}}.json",
    log:
        f"{RESULTS}/weights/logs/{{encoder}}-{{tag}}.log",
    conda:
        "../../envs/torch.yaml"
    shell:
        f"avqa weights --encoder {{wildcards.encoder}} --weights {{wildcards.tag:q}} --out {{output:q}} {LOG}"


localrules:
    weights,


rule extract:
    input:
        segments=unless_made(FEATURES_FILE, JOBS.extraction_segments),
        weights=unless_made(FEATURES_FILE, JOBS.extraction_weights),
    output:
        FEATURES_FILE,
    log:
        f"{COLLECTION}/logs/{{folder}}/{{shard}}.log",
    benchmark:
        f"{COLLECTION}/benchmarks/{{folder}}/{{shard}}.tsv"
    priority: 10  # before more is decoded
    conda:
        "../../envs/torch.yaml"
    threads: CLUSTER.extraction_threads("extract")
    resources:
        gpu=CLUSTER.gpu("extract"),
        mem_mb=CLUSTER.mem_mb("extract"),
        runtime=CLUSTER.runtime("extract"),
    params:
        settings=JOBS.extraction_flags,
    shell:
        f"avqa extract {{input.segments:q}} --out {{output:q}} {{params.settings}} {LOG}"


rule text:
    input:
        questions=unless_made(TEXT_FILE, JOBS.text_questions),
        weights=unless_made(TEXT_FILE, JOBS.text_weights),
    output:
        TEXT_FILE,
    log:
        f"{DATASET}/logs/text/{{text}}.log",
    benchmark:
        f"{DATASET}/benchmarks/text/{{text}}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: CLUSTER.extraction_threads("text")
    resources:
        gpu=CLUSTER.gpu("text"),
        mem_mb=CLUSTER.mem_mb("text"),
        runtime=CLUSTER.runtime("text"),
    params:
        settings=JOBS.text_flags,
    shell:
        f"avqa text {{input.questions:q}} --out {{output:q}} {{params.settings}} {LOG}"
