"""Check detection sets: counts, files, images, boxes. Exit 0 if they are sound, 2 if not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.named_sets import NamedSet, sets_of_config, unknown_set, unused
from transfer.config import datasets_root, known_datasets
from transfer.data_check import check_set, is_present
from transfer.data_findings import Needs


def main() -> int:
    """Read the arguments and check each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="sets; default: the config's, or all there are")
    parser.add_argument("--config-file", type=Path, help="a pipeline config that names sets")
    parser.add_argument(
        "--decode",
        choices=("auto", "all", "none"),
        default="auto",
        help="decode images: in sets of up to 2,000 (auto), in all, in none; always in parallel",
    )
    arguments = parser.parse_args()
    try:
        sets = chosen(arguments.names, arguments.config_file)
    except (ValueError, OSError) as error:
        print("\n".join(f"check_data: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    broken = False
    for name, (data, *needs) in sets.items():
        report = check_set(name, data, Needs(*needs), arguments.decode)
        print(f"{name}: {report.summary()}", flush=True)
        for line in report.notes:
            print(f"{name}: note: {line}")
        for line in report.faults:
            print(f"{name}: {line}", file=sys.stderr)
        broken = broken or bool(report.faults)
    return 2 if broken else 0


def chosen(names: list[str], config_file: Path | None) -> dict[str, NamedSet]:
    """Return the sets to check."""
    known = {name: unused(name, data) for name, data in known_datasets().items()}
    of_config = sets_of_config(config_file) if config_file else {}
    if names:
        if wrong := [name for name in names if name not in known | of_config]:
            where = config_file or datasets_root()
            raise ValueError(
                "\n".join(unknown_set(name, where, known | of_config) for name in wrong)
            )
        return {name: (known | of_config)[name] for name in names}
    found = of_config or {name: held for name, held in known.items() if is_present(held.data)}
    if not found:
        raise ValueError(f"{datasets_root()}: no known set is there; set DETECTRON2_DATASETS")
    return found


if __name__ == "__main__":
    sys.exit(main())
