"""The faces of the folders; a folder that has files without torch has none."""

import ast
import importlib
from pathlib import Path

import pytest

import pretrain

FACES = {
    "losses": {"CWRGPLoss", "WMSELoss", "WhiteningLoss", "build_loss"},
    "methods": {"build_model"},
    "models": {
        "BACKBONE", "Features", "InputConvention", "SelfSupervisedModel", "read_backbone_file",
        "save_backbone",
    },
    "probes": {
        "TrainingProbe", "open_backbone", "probe_and_write", "probe_kept_states", "run_probe",
    },
    "training": {"DivergedError", "Trainer"},
    "views": {"ShardedViews", "ViewLoader", "loader_faults", "too_few_images"},
    "whitening": {"whiten"},
}  # fmt: skip
FOLDERS = sorted(path.parent for path in Path(pretrain.__file__).parent.glob("*/__init__.py"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_face_names_what_it_offers_and_is_empty_where_torch_is_not_needed(folder):
    body = ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
    if folder.name in FACES:
        module = importlib.import_module(f"pretrain.{folder.name}")
        assert set(module.__all__) == FACES[folder.name]
        assert all(hasattr(module, name) for name in module.__all__)
    else:
        assert len(body) == 1, "a docstring alone"
