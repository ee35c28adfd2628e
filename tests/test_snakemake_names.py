"""What the rules use of Snakemake's own objects, which no document promises: few names, no private ones."""

import inspect
import re
from pathlib import Path

import snakemake.api  # noqa: F401  # before snakemake.workflow, which imports it
from snakemake.settings.types import DAGSettings, DeploymentSettings, ResourceSettings, StorageSettings
from snakemake.workflow import Workflow

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "Snakefile", *(ROOT / "pipeline" / "rules").glob("*.smk"), ROOT / "pipeline" / "cluster.py"]
KNOWN = {
    "basedir",
    "configfiles",
    "dag_settings",
    "deployment_settings",
    "dryrun",
    "executor_plugin",
    "executor_settings",
    "global_resources",
    "is_main_process",
    "local_exec",
    "register_resource",
    "resource_settings",
    "storage_settings",
}
SETTINGS = {
    "dag_settings": (DAGSettings, {"forceall", "forcerun", "targets", "until"}),
    "deployment_settings": (DeploymentSettings, {"deployment_method"}),
    "resource_settings": (ResourceSettings, {"default_resources", "overwrite_resources", "overwrite_threads"}),
    "storage_settings": (StorageSettings, {"notemp"}),
}


def test_the_names_of_the_workflow_that_are_used():
    text = "\n".join(path.read_text() for path in FILES)
    assert set(re.findall(r"\bworkflow\.(\w+)", text)) == KNOWN
    assert not re.search(
        r"\bworkflow\._|persistence|\.dag\b|from snakemake\.(?!utils|exceptions|settings\.types)", text
    )
    source = inspect.getsource(Workflow)
    assert not [name for name in KNOWN if not re.search(rf"def {name}\(|self\.{name}\b", source)]


def test_the_settings_that_are_used():
    text = "\n".join(path.read_text() for path in FILES).replace("given = workflow.resource_settings", "")
    text = text.replace("given.", "workflow.resource_settings.")
    for name, (kind, known) in SETTINGS.items():
        assert set(re.findall(rf"workflow\.{name}\.(\w+)", text)) == known, name
        assert known <= kind.__dataclass_fields__.keys()
