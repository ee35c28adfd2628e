# The tables of the first model's paper: a model for each row of the grid and each seed, then a table beside the paper's.

from snakemake.utils import Paramspace

from pipeline.ablations import read_grid

try:
    GRID = read_grid(config)
except AVQAError as error:
    raise WorkflowError(str(error))
ROWS = Paramspace(GRID[["table", "row"]])
ABLATED = f"{RESULTS}/ablations/{ROWS.wildcard_pattern}/seed-{{seed}}"


def settings_of(wildcards):
    """What the row of a table changes in the first model of the configuration."""
    chosen = (GRID["table"] == wildcards.table) & (GRID["row"] == int(wildcards.row))
    return GRID.loc[chosen, "settings"].item()


rule ablation:
    input:
        features=f"{RESULTS}/features.h5",
        questions=questions,
    output:
        checkpoint=f"{ABLATED}/checkpoint.safetensors",
        scores=f"{ABLATED}/scores.json",
    params:
        row=settings_of,
        base=next(iter(config["models"].values())),
        schedule={name: value for name, value in config["train"].items() if name not in ("seeds", "threads")},
        folder=subpath(output.scores, parent=True),
    log:
        f"{RESULTS}/logs/ablations/{ROWS.wildcard_pattern}/seed-{{seed}}.log",
    threads: config["train"]["threads"]
    resources:
        gpu=1,
    conda:
        "../../envs/torch.yaml"
    shell:
        f"(avqa train --config {CONFIG} --seed {{wildcards.seed}} --settings {{params.row:q}} --out {{params.folder}}"
        f" && avqa evaluate {{params.folder}}) {LOG}"


for table in GRID["table"].unique():

    rule:
        name:
            f"ablations_{table}"
        input:
            expand(
                f"{RESULTS}/ablations/{{instance}}/seed-{{seed}}/scores.json",
                instance=Paramspace(GRID.loc[GRID["table"] == table, ["table", "row"]]).instance_patterns,
                seed=config["train"]["seeds"],
            ),
        output:
            f"{RESULTS}/ablations/{table}.csv",
        params:
            table=table,
        log:
            f"{RESULTS}/logs/ablations/{table}.log",
        conda:
            "../../envs/torch.yaml"
        shell:
            f"avqa ablations --config {CONFIG} --table {{params.table}} {LOG}"


rule ablations:
    input:
        expand(f"{RESULTS}/ablations/{{table}}.csv", table=GRID["table"].unique()),
