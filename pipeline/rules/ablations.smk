# The tables of the models' papers: a model for each row of a grid and each seed, then a table beside the paper's.

from snakemake.utils import Paramspace

from pipeline.ablations import read_grid

try:
    GRID = read_grid(config)
except AVQAError as error:
    raise WorkflowError(str(error))
ROWS = Paramspace(GRID[["entry", "table", "row"]])
ABLATED = f"{DATASET}/ablations/{ROWS.wildcard_pattern}/seed-{{seed}}"
TABLES = GRID[["entry", "table"]].drop_duplicates().itertuples(index=False, name=None)
TABLES = {f"{entry}_{table}": (entry, table) for entry, table in TABLES}


wildcard_constraints:
    entry="|".join(map(re.escape, config["models"])),
    table=r"\w+",
    row=r"\d+",


rule ablation:
    input:
        features=f"{DATASET}/features.h5",
        questions=questions,
    output:
        checkpoint=f"{ABLATED}/checkpoint.safetensors",
        scores=f"{ABLATED}/scores.json",
    log:
        f"{DATASET}/logs/ablations/{ROWS.wildcard_pattern}/seed-{{seed}}.log",
    conda:
        "../../envs/torch.yaml"
    threads: config["train"]["threads"]
    resources:
        gpu=1,
        workers=config["train"]["workers"],
    params:
        settings=ablation_settings,
        folder=subpath(output.scores, parent=True),
    shell:
        f"(avqa train --config {{params.settings:q}} --seed {{wildcards.seed}}"
        f" --workers {{resources.workers}} --out {{params.folder:q}}"
        f" && avqa evaluate {{params.folder:q}}) {LOG}"


def ablated(entry, table):
    """The scores that a table is made of."""
    rows = GRID[(GRID["entry"] == entry) & (GRID["table"] == table)]
    instances = Paramspace(rows[["entry", "table", "row"]]).instance_patterns
    return expand(
        f"{DATASET}/ablations/{{instance}}/seed-{{seed}}/scores.json", instance=instances, seed=config["train"]["seeds"]
    )


rule ablation_table:
    input:
        lambda wildcards: ablated(wildcards.entry, wildcards.table),
    output:
        f"{DATASET}/ablations/{{entry}}/{{table}}.csv",
    log:
        f"{DATASET}/logs/ablations/{{entry}}/{{table}}.log",
    conda:
        "../../envs/torch.yaml"
    params:
        settings=lambda wildcards: settings(
            "results",
            "dataset",
            "encoders",
            models={wildcards.entry: config["models"][wildcards.entry]},
            train={"seeds": config["train"]["seeds"]},
        )(wildcards),
    shell:
        f"avqa ablations --config {{params.settings:q}} --table {{wildcards.table}} {LOG}"


for target, (entry, table) in TABLES.items():

    rule:
        name:
            f"ablations_{target}"
        input:
            f"{DATASET}/ablations/{entry}/{table}.csv",


rule ablations:
    input:
        [f"{DATASET}/ablations/{entry}/{table}.csv" for entry, table in TABLES.values()],
