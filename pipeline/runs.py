"""The trainings of a data set that are there, whatever configuration made them: what differs, and what they scored."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pandas as pd
import yaml

from pipeline.config import dataset_dir
from pipeline.errors import AVQAError
from pipeline.timing import read_timings


def list_runs(config: dict) -> pd.DataFrame:
    """One line per model, settings and data: model, the settings in which it differs from others of its name, seeds,
    test accuracy in % (mean ± standard deviation over seeds, of the newest scores of each), when and how long it was
    trained, and the folder. Raises AVQAError if nothing was trained."""
    folder = dataset_dir(config)
    runs: dict[Path, list[Path]] = {}
    for path in sorted(folder.glob("runs/*/seed-*/config.yaml")):
        runs.setdefault(path.parent.parent, []).append(path)
    if not runs:
        raise AVQAError(f"{folder / 'runs'}: nothing is trained yet; run the workflow")
    made = {run: yaml.safe_load(paths[0].read_text(encoding="utf-8")) for run, paths in runs.items()}
    decided = {run: _flat(json.loads(values["decided_by"] or "{}")) for run, values in made.items()}
    scores = _newest_scores(folder)
    lines = []
    for run, paths in runs.items():
        model = made[run]["model"]
        others = [decided[other] for other in runs if made[other]["model"] == model]
        accuracies = pd.Series([100 * scores[path.parent] for path in paths if path.parent in scores], dtype=float)
        spread = f" ± {accuracies.std():.2f}" if len(accuracies) > 1 else ""
        seconds = sum(timing.wall for path in paths if (timing := read_timings([path.with_name("timing.json")])))
        lines.append(
            {
                "model": model,
                "settings": ", ".join(_differing(decided[run], others)),
                "seeds": " ".join(str(path.parent.name.removeprefix("seed-")) for path in paths),
                "accuracy": f"{accuracies.mean():.2f}{spread}" if len(accuracies) else "",
                "trained": f"{datetime.fromtimestamp(max(path.stat().st_mtime for path in paths)):%Y-%m-%d %H:%M}",
                "minutes": round(seconds / 60, 1),
                "folder": str(run),
            }
        )
    return pd.DataFrame(lines)


def _flat(value: object, name: str = "") -> dict[str, object]:
    """The leaves of nested mappings, by their path."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{name}.{key}" if name else str(key)).items()}


def _differing(values: Mapping[str, object], others: list[Mapping[str, object]]) -> list[str]:
    """What is not equal in all runs of a model, without its common beginning."""
    names = sorted({name for other in others for name in other})
    differing = [name for name in names if any(other.get(name) != values.get(name) for other in others)]
    return [f"{name.removeprefix('model.').removeprefix('schedule.')}={values.get(name)}" for name in differing]


def _newest_scores(folder: Path) -> dict[Path, float]:
    """The overall test accuracy of each run's newest scores on the data set."""
    found: dict[Path, tuple[float, float]] = {}
    for path in folder.glob("scores/*/*/seed-*/scores.json"):
        run = (path.parent / "config.yaml").resolve().parent
        made, accuracy = path.stat().st_mtime, json.loads(path.read_text(encoding="utf-8"))["overall"]["accuracy"]
        found[run] = max(found.get(run, (0.0, 0.0)), (made, accuracy))
    return {Path(folder, *run.parts[-3:]): accuracy for run, (_, accuracy) in found.items()}
