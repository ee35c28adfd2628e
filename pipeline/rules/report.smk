# Scores of all models and seeds to a summary and a page.


rule report:
    input:
        scores,
        rules.failures.output,
    output:
        page=f"{DATASET}/report.html",
        summary=f"{DATASET}/summary.txt",
    log:
        f"{DATASET}/logs/report.log",
    conda:
        "../../envs/torch.yaml"
    params:
        lambda wildcards: settings(
            "results",
            "dataset",
            "videos",
            "trained_on",
            "models",
            encoders={name: {"weights": ""} for name in CONFIGS[wildcards.dataset]["encoders"]},
            train={"seeds": CONFIGS[wildcards.dataset]["train"]["seeds"]},
        )(wildcards),
    shell:
        "avqa report --config {params:q} > {log:q} 2>&1"
