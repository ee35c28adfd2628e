# Videos and questions in, aligned features, a trained model and its scores out.
#
#     snakemake --cores 8                                              the demo
#     snakemake --cores 8 --configfile config/music_avqa.yaml         a real data set

import sys

from snakemake.utils import min_version

min_version("9.0")
sys.path.insert(0, workflow.basedir)

# Not unconditionally: Snakemake would merge the demo's settings into those of --configfile.
if "dataset" not in config:

    configfile: f"{workflow.basedir}/config/config.yaml"


include: "pipeline/rules/common.smk"
include: "pipeline/rules/manifest.smk"
include: "pipeline/rules/decode.smk"
include: "pipeline/rules/extract.smk"
include: "pipeline/rules/index.smk"
include: "pipeline/rules/train.smk"
include: "pipeline/rules/report.smk"
include: "pipeline/rules/ablations.smk"


# Shards are requested by name: else Snakemake would not detect that one was removed once features.h5 is there.
rule features:
    input:
        rules.index.output,
        rules.index.input.features,
        rules.text.output,
        rules.failures.output,
        kept_segments(),  # Snakemake keeps temporary files that a target needs


rule all:
    default_target: True
    input:
        rules.features.input,
        rules.report.output,


onstart:
    start_run()


onsuccess:
    remove_leftovers()
    if Path(rules.report.output.summary).exists():
        print(Path(rules.report.output.summary).read_text())
