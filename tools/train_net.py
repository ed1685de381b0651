"""Fine-tune or evaluate one detector with detectron2's own command line.

Without a GPU it runs on the CPU. Fewer GPUs than SOLVER.REFERENCE_WORLD_SIZE mean a smaller batch
and learning rate and more iterations; the values used are printed and kept in OUTPUT_DIR.
"""

import os
import sys
from argparse import Namespace
from contextlib import suppress
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline.commands.command_line import need_packages

need_packages()
from pipeline.config.kinds import load_config
from pipeline.plan.place import FINE_TUNING, folder_fault
from transfer.config.command_line import argument_parser, merged_config, parsed, weights_place_fault
from transfer.config.data import known_datasets
from transfer.config.finetune import defaults
from transfer.datasets.check import task_faults
from transfer.datasets.findings import Needs

load = partial(load_config, kind="detectron2 config")  # with its `_BASE_`, and nothing executed


def check_early(options: Namespace) -> None:
    """Raise ValueError for what needs no torch to be refused: wrong keys, no file."""
    with suppress(FileNotFoundError):  # without detectron2; its import says so
        config = options.config_file, options.opts or [], load, options.optimizer
        cfg = merged_config(defaults().clone(), *config)
        names = dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        sets = {name: known_datasets()[name] for name in names if name in known_datasets()}
        missing = {name: (data, Needs(evaluated=name in cfg.DATASETS.TEST, masks=False))
                   for name, data in sets.items() if not data.index_file.is_file()}  # fmt: skip
        place = folder_fault(Path(cfg.OUTPUT_DIR), FINE_TUNING, "OUTPUT_DIR")
        faults = [*filter(None, [weights_place_fault(cfg.MODEL.WEIGHTS), place])]
        if faults := [*faults, *task_faults(missing)]:
            raise ValueError("\n".join(faults))


def main() -> int:
    """Return 0 when the metrics are printed, 2 when the user has something to fix."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # whose processes have to agree who speaks
        options = parsed(argument_parser(__doc__), sys.argv[1:])
        try:
            check_early(options)
        except (ValueError, OSError) as error:
            print(f"train_net: {error}", file=sys.stderr)
            return 2
    from transfer.detection.cli import main as train  # noqa: PLC0415  (imports torch)

    return train(__doc__, load=load)


if __name__ == "__main__":
    sys.exit(main())
