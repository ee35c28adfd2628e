# Shards to one logical file, features.h5, whose numbers are then checked, and the list of what failed.

DATA = f"{RESULTS}/{paths.DATA}"


rule index:
    input:
        unless_made([f"{DATA}/{name}" for name in ("features.h5", *MANIFEST)], JOBS.index_inputs),
    output:
        features=f"{DATA}/features.h5",
        manifest=[f"{DATA}/{name}" for name in MANIFEST],
    log:
        f"{DATASET}/logs/index/{{key}}.log",
    conda:
        "../../envs/media.yaml"
    params:
        settings=JOBS.index_flags,
        folder=lambda wildcards, output: Path(output.features).parent,
    shell:
        f"avqa index {{params.settings}} --out {{params.folder:q}} {LOG}"


rule verify:
    input:
        unless_made(f"{DATA}/verify.json", lambda wildcards: f"{DATA}/features.h5".format(**wildcards)),
    output:
        f"{DATA}/verify.json",
    log:
        f"{DATASET}/logs/verify/{{key}}.log",
    conda:
        "../../envs/media.yaml"
    params:
        features=lambda wildcards, output: Path(output[0]).with_name("features.h5"),
        findings=lambda wildcards, output: Path(output[0]).with_name("findings.json"),  # where there are errors too
    shell:
        f"avqa verify {{params.features:q}} --json {{params.findings:q}} {LOG} && mv {{params.findings:q}} {{output:q}}"


rule failures:
    input:
        unless_made([f"{DATA}/failures.tsv", f"{DATA}/missing.tsv"], JOBS.failures_inputs),
    output:
        failures=report(
            f"{DATA}/failures.tsv",
            caption="captions/failures.rst",
            category="Data set",
            labels={"data set": "{dataset}", "result": "videos that could not be decoded"},
        ),
        missing=report(
            f"{DATA}/missing.tsv",
            caption="captions/missing.rst",
            category="Data set",
            labels={"data set": "{dataset}", "result": "questions of missing videos"},
        ),
    log:
        f"{DATASET}/logs/failures/{{key}}.log",
    conda:
        "../../envs/media.yaml"
    params:
        folder=lambda wildcards, output: Path(output.failures).parent,
        settings=JOBS.failures_flags,
    shell:
        f"avqa failures {{params.folder:q}} {{params.settings}} {LOG}"


localrules:
    index,
    failures,
