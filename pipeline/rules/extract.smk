# Segments and questions to features: frozen encoders, on the GPU if there is one.


rule weights:
    output:
        f"{RESULTS}/weights/{{encoder}}/{{tag}}.json",
    log:
        f"{RESULTS}/weights/logs/{{encoder}}-{{tag}}.log",
    wildcard_constraints:
        tag="[^/]+",
    conda:
        "../../envs/torch.yaml"
    shell:
        f"avqa weights --encoder {{wildcards.encoder}} --weights {{wildcards.tag:q}} --out {{output:q}} {LOG}"


localrules:
    weights,


rule extract:
    input:
        shard=f"{COLLECTION}/shards/{{shard}}.tsv",
        segments=segments,
        weights=weights_first,
    output:
        f"{COLLECTION}/features/{{encoder}}/{{shard}}.h5",
    log:
        f"{COLLECTION}/logs/{{encoder}}/{{shard}}.log",
    benchmark:
        f"{COLLECTION}/benchmarks/{{encoder}}/{{shard}}.tsv"
    priority: 10  # before more is decoded
    conda:
        "../../envs/torch.yaml"
    threads: extraction_threads("extract")
    resources:
        gpu=gpu("extract"),
        mem_mb=mem_mb("extract"),
        runtime=runtime("extract"),
    params:
        settings=extraction_settings,
        weights=lambda wildcards, threads: weights_flags(ENCODERS_OF[wildcards.collection][wildcards.encoder]),
        batch_size=batch_size,
        timing=timing_in(f"{COLLECTION}/benchmarks/{{encoder}}/{{shard}}.json"),
    shell:
        "avqa extract {input.segments:q} --out {output:q} --encoder {wildcards.encoder} {params.weights}"
        f" {{params.batch_size}} --timing {{params.timing:q}} {LOG}"


# Says that an encoder has read all of a data set's shards, or all that its training needs. What depends on an encoder
# depends on this file, and not on others' features.
rule extracted:
    input:
        lambda wildcards: expand(
            f"{RESULTS}/{collection_of(wildcards)}/features/{wildcards.encoder}/{{shard}}.h5", shard=shards(wildcards)
        ),
    output:
        touch(f"{DATASET}/extracted/{{use}}/{{encoder}}"),
    params:
        lambda wildcards: json.dumps(shards(wildcards)),


rule text:
    input:
        questions=questions,
        weights=text_weights_first,
    output:
        f"{DATASET}/text/{{encoder}}.h5",
    log:
        f"{DATASET}/logs/text/{{encoder}}.log",
    benchmark:
        f"{DATASET}/benchmarks/text/{{encoder}}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: extraction_threads("text")
    resources:
        gpu=gpu("text"),
        mem_mb=mem_mb("text"),
        runtime=runtime("text"),
    params:
        settings=one_text_settings,
        texts=state_of_texts,
        flags=lambda wildcards, threads: one_text_flags(wildcards),
        prompts=lambda wildcards, threads: "--prompts" if reads_prompts(CONFIGS[wildcards.dataset]) else "",
        batch_size=lambda wildcards, threads: flags(batch_size=text_entry(wildcards).get("batch_size")),
    shell:
        "avqa text {input.questions:q} --out {output:q} --dataset {wildcards.dataset} {params.flags} {params.prompts}"
        f" {{params.batch_size}} {LOG}"
