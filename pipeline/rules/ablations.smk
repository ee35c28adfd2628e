# The tables of the first model's paper: a model for each row of the grid and each seed, then a table beside the paper's.

from pipeline.ablations import read_grid

try:
    GRIDS = {name: read_grid(CONFIGS[name]) for name in TRAINED}
except AVQAError as error:
    sys.exit(str(error))
TABLES = list(dict.fromkeys(table for grid in GRIDS.values() for table in grid["table"]))
ABLATED = f"{DATASET}/ablations/table~{{table}}/row~{{row}}/seed-{{seed}}"


BOTH = from_manifest("training", "test")


rule ablation:
    input:
        features=index_if_not_ablated,
        extracted=read_by_first_model,
        questions=questions,
    output:
        checkpoint=f"{ABLATED}/checkpoint.safetensors",
        scores=f"{ABLATED}/scores.json",
    log:
        f"{DATASET}/logs/ablations/table~{{table}}/row~{{row}}/seed-{{seed}}.log",
    conda:
        "../../envs/torch.yaml"
    threads: training_threads
    resources:
        gpu=gpu,
        mem_mb=mem_mb("train"),
        runtime=runtime("train"),
    params:
        settings=ablation_settings,
        questions=BOTH,
        text=text_settings,
        folder=lambda wildcards, output: Path(output.scores).parent,
    shell:
        f"(avqa train --config {{params.settings:q}} --seed {{wildcards.seed}} --out {{params.folder:q}}"
        f" && avqa evaluate {{params.folder:q}}) {LOG}"


rule ablation_table:
    input:
        rows_of_table,
    output:
        report(
            f"{DATASET}/ablations/{{table}}.csv",
            caption="captions/ablations.rst",
            category="Tables of the paper",
            labels={"data set": "{dataset}", "result": "{table}"},
        ),
    log:
        f"{DATASET}/logs/ablations/{{table}}.log",
    wildcard_constraints:
        table="[^/]+",
    conda:
        "../../envs/torch.yaml"
    params:
        settings=table_settings,
    shell:
        f"avqa ablations --config {{params.settings:q}} --table {{wildcards.table}} {LOG}"


for table in TABLES:

    rule:
        name:
            f"ablations_{table}"
        input:
            tables(table),


rule ablations:
    input:
        tables(*TABLES),


localrules:
    extracted,
    index,
    failures,
    report,
    ablation_table,
