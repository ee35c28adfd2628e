# Scores of all models and seeds, and what the first seed's answers depend on, to a summary and a page.


rule report:
    input:
        expand(rules.evaluate.output.scores, model=config["models"], seed=config["train"]["seeds"]),
        expand(rules.explain.output, model=config["models"], seed=config["train"]["seeds"][:1]),
        rules.failures.output,
    output:
        page=report(
            f"{DATASET}/report.html", caption="captions/report.rst", category="Report", labels={"result": "report"}
        ),
        summary=report(
            f"{DATASET}/summary.txt", caption="captions/summary.rst", category="Report", labels={"result": "summary"}
        ),
    log:
        f"{DATASET}/logs/report.log",
    conda:
        "../../envs/torch.yaml"
    params:
        settings(
            *("results", "dataset", "videos", "encoders", "models"),
            train={"seeds": config["train"]["seeds"]},
            decode={name: value for name, value in config["decode"].items() if name != "workers"},
        ),
    shell:
        "avqa report --config {params:q} > {log:q} 2>&1"
