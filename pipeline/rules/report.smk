# Scores of all models and seeds to a summary and a page.


rule report:
    input:
        expand(rules.evaluate.output.scores, model=config["models"], seed=config["train"]["seeds"]),
        rules.failures.output,
    output:
        page=f"{DATASET}/report.html",
        summary=f"{DATASET}/summary.txt",
    log:
        f"{DATASET}/logs/report.log",
    conda:
        "../../envs/torch.yaml"
    params:
        settings("results", "dataset", "videos", "encoders", "models", train={"seeds": config["train"]["seeds"]}),
    shell:
        "avqa report --config {params:q} > {log:q} 2>&1"
