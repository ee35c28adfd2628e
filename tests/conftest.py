"""What several tests need, and how property tests choose their examples."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Always the same examples, and no deadline, so that a run does not fail by chance; `make test-random` tries others. A
# failure prints what makes it again. Loaded before the tests are imported, whose own settings build on it.
settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("random", database=None, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material that developers have beside the repository; users do not."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"the reference material is not at {folder}")
    return folder


LONG = ("test_workflow.py", "test_changes.py", "test_readme.py", "test_alignment_models.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes come first, so that no worker has one left when the others are done."""
    items.sort(key=lambda item: item.path.name not in LONG)
