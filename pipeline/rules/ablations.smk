# The tables of the first model's paper: a model for each row of the grid and each seed, then a table beside the paper's.

from snakemake.utils import Paramspace

from pipeline.ablations import read_grid

try:
    GRID = read_grid(config)
except AVQAError as error:
    sys.exit(str(error))
FIRST_MODEL = dict([next(iter(config["models"].items()))])
ROWS = Paramspace(GRID[["table", "row"]])
ABLATED = f"{DATASET}/ablations/{ROWS.wildcard_pattern}/seed-{{seed}}"


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
    params:
        settings=ablation_settings,
        folder=subpath(output.scores, parent=True),
    shell:
        f"(avqa train --config {{params.settings:q}} --seed {{wildcards.seed}} --out {{params.folder:q}}"
        f" && avqa evaluate {{params.folder:q}}) {LOG}"


for table in GRID["table"].unique():

    rule:
        name:
            f"ablations_{table}"
        input:
            expand(
                f"{DATASET}/ablations/{{instance}}/seed-{{seed}}/scores.json",
                instance=Paramspace(GRID.loc[GRID["table"] == table, ["table", "row"]]).instance_patterns,
                seed=config["train"]["seeds"],
            ),
        output:
            report(
                f"{DATASET}/ablations/{table}.csv",
                caption="captions/ablations.rst",
                category="Tables of the paper",
                labels={"result": table},
            ),
        log:
            f"{DATASET}/logs/ablations/{table}.log",
        conda:
            "../../envs/torch.yaml"
        params:
            settings=settings("results", "dataset", models=FIRST_MODEL, train={"seeds": config["train"]["seeds"]}),
            table=table,
        shell:
            f"avqa ablations --config {{params.settings:q}} --table {{params.table}} {LOG}"


rule ablations:
    input:
        expand(f"{DATASET}/ablations/{{table}}.csv", table=GRID["table"].unique()),
