"""k-NN accuracy on the embedded digits: all methods by number of views, pixels, random features.

Run again, it goes on where it stopped; `make_digits.py` writes the data it needs. Example:
python tools/digits_knn.py --methods w-mse-2 --seeds 0 --steps 100
"""

import argparse
import logging
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import need_packages

need_packages()
from rich.console import Console

from pipeline.config.yaml_files import apply_overrides, load_yaml, validated
from pretrain.config.probe import ProbeConfig
from pretrain.data.splits import check_splits
from pretrain.runtime.files import write_json

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "pretrain"
COMPARED = ("simclr", "barlow-twins", "vicreg", "simsiam", "byol", "moco-v2", "intl")
METHODS = {
    f"{name}-{views}": (f"digits_{name.replace('-', '_')}.yaml", views)
    for name, views in (*product(("w-mse", "cw-rgp"), (2, 4)), *product(COMPARED, (2,)))
}


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when the table is printed, 2 when the user has something to fix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/digits-knn"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200, help="steps of each pretraining")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        steps = {"max_steps": options.steps}
        recipes = {key: load_yaml(CONFIGS / file) | {"num_views": views} | steps
                   for key, (file, views) in METHODS.items() if key in options.methods}  # fmt: skip
        content = apply_overrides(load_yaml(CONFIGS / "probe_digits.yaml"), ["linear=null"])
        probe = validated(ProbeConfig, content, "probe_digits.yaml")
        check_splits(probe.data, ("train", "test"))
        from examples.digits_knn import run_study, study_table  # noqa: PLC0415  (imports torch)

        results = run_study(recipes, probe, options.seeds, options.output_dir)
        write_json({"steps": options.steps, "results": results}, options.output_dir / "knn.json")
        Console().print(study_table(results))
    except (ValueError, OSError) as error:
        print("\n".join(f"digits_knn: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
