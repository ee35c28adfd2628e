# The tables of the models' papers: a model for each row of a grid and each seed, then a table beside the paper's.

from pipeline.ablations import changed_entry, read_grid

try:
    GRIDS = {name: read_grid(CONFIGS[name]) for name in TRAINED}
except AVQAError as error:
    sys.exit(str(error))
ABLATED = f"{DATASET}/ablations/{{model}}/table~{{table}}/row~{{row}}/seed-{{seed}}"


BOTH = from_manifest("training", "test")


rule ablation:
    input:
        features=index_if_not_ablated,
        extracted=read_by_row,
        questions=questions,
    output:
        checkpoint=f"{ABLATED}/checkpoint.safetensors",
        scores=f"{ABLATED}/scores.json",
    log:
        f"{DATASET}/logs/ablations/{{model}}/table~{{table}}/row~{{row}}/seed-{{seed}}.log",
    wildcard_constraints:
        table=r"\w+",
        row=r"\d+",
    conda:
        "../../envs/torch.yaml"
    threads: training_threads
    resources:
        gpu=gpu("ablation"),
        mem_mb=mem_mb("ablation"),
        runtime=runtime("ablation"),
    params:
        settings=ablation_settings,
        questions=BOTH,
        text=text_settings,
        workers=workers,
        folder=lambda wildcards, output: Path(output.scores).parent,
    shell:
        f"(avqa train --config {{params.settings:q}} --seed {{wildcards.seed}} --workers {{params.workers}}"
        f" --out {{params.folder:q}} && avqa evaluate {{params.folder:q}}) {LOG}"


rule ablation_table:
    input:
        rows_of_table,
    output:
        report(
            f"{DATASET}/ablations/{{model}}/{{table}}.csv",
            caption="captions/ablations.rst",
            category="Tables of the paper",
            labels={"data set": "{dataset}", "model": "{model}", "result": "{table}"},
        ),
    log:
        f"{DATASET}/logs/ablations/{{model}}/{{table}}.log",
    wildcard_constraints:
        table=r"\w+",
    conda:
        "../../envs/torch.yaml"
    params:
        settings=table_settings,
    shell:
        f"avqa ablations --config {{params.settings:q}} --table {{wildcards.table}} {LOG}"


TABLES = {}  # target: its files, one of each data set
for name, grid in GRIDS.items():
    for model, table in grid[["entry", "table"]].drop_duplicates().itertuples(index=False, name=None):
        TABLES.setdefault(f"{model}_{table}", []).append(f"{RESULTS}/{name}/ablations/{model}/{table}.csv")


for target, files in TABLES.items():

    rule:
        name:
            f"ablations_{target}"
        input:
            files,


rule ablations:
    input:
        [file for files in TABLES.values() for file in files],


localrules:
    extracted,
    index,
    failures,
    report,
    ablation_table,
