# Scores of all models and seeds, and what the first seed's answers depend on, to a summary and a page.


rule report:
    input:
        scores,
        explanations,
        rules.failures.output,
    output:
        page=report(
            f"{DATASET}/report.html",
            caption="captions/report.rst",
            category="Report",
            labels={"data set": "{dataset}", "result": "report"},
        ),
        summary=report(
            f"{DATASET}/summary.txt",
            caption="captions/summary.rst",
            category="Report",
            labels={"data set": "{dataset}", "result": "summary"},
        ),
    log:
        f"{DATASET}/logs/report.log",
    conda:
        "../../envs/torch.yaml"
    params:
        lambda wildcards: settings(
            "results",
            "dataset",
            "videos",
            "card",
            "trained_on",
            "models",
            encoders={name: {"weights": ""} for name in CONFIGS[wildcards.dataset]["encoders"]},
            train={"seeds": CONFIGS[wildcards.dataset]["train"]["seeds"]},
            decode={
                name: value
                for name, value in CONFIGS[wildcards.dataset]["decode"].items()
                if name not in ("workers", "ahead")
            },
        )(wildcards),
    shell:
        "avqa report --config {params:q} > {log:q} 2>&1"
