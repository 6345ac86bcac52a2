"""Lets the tests of this folder share modules, and one comparison."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from compared import Made, Watching, write_comparison


@pytest.fixture(scope="session")
def made(tiny_model, tiny_data, tmp_path_factory):
    """Stopped in its second run and gone on with; to be looked at and not changed."""
    made = Made(write_comparison(tiny_model, tiny_data, tmp_path_factory.mktemp("compared")))
    made.stopped = made.run(watcher=Watching(stop_in="random_k-0"))
    made.after_stop = {path.name: (path / "summary.json").is_file() for path in made.plan().folder.glob("runs/*")}
    made.ended = made.run()
    return made


@pytest.fixture
def copied(made, tmp_path):
    """A copy of it, to be changed: the file and the folder."""
    folder = made.plan().folder
    shutil.copytree(folder, tmp_path / "out")
    tree = yaml.safe_load(made.file.read_text())
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump({**tree, "output": str(tmp_path / "out")}))
    return Made(tmp_path / "comparison.yaml")
