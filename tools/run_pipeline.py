"""Run a benchmark pipeline: pretrain, convert, fine-tune, report.

run     runs what is not done yet, then writes the report; on SLURM it submits and returns
plan    prints every stage, what is done and what it needs; on SLURM the sbatch text too
status  prints where every stage stands
runs    lists all pipelines below a folder (runs), by their run folders alone: runs [FOLDER]
logs    prints the end of the log of --stage
cancel  cancels every job that the plan has in SLURM's queue; run goes on from there
report  writes the report anew from whatever is done; `report A B ...` merges several runs,
        folders or files results.json, into one table, and compares two folders
clean   prints what the folder holds that nothing needs, and its size; --yes removes it
init    writes a config from flags or questions (init --help)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import add_config, need_packages, parsed

need_packages()
from pipeline.commands.main import FLAGS, NAMES, RUNS, Options, execute, init

EXAMPLE = """example:
  python tools/run_pipeline.py run --config-file configs/pipeline/demo.yaml
  python tools/run_pipeline.py plan --config-file configs/pipeline/demo.yaml seeds=[0,1,2]
  python tools/run_pipeline.py report runs/demo runs/other theirs/results.json"""


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 a stage failed, 2 something to fix, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["init"]:
        return init(arguments[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=[*NAMES, RUNS])
    add_config(parser, "pipeline")
    for flag, keywords in FLAGS.items():
        parser.add_argument(flag, **keywords)
    given = vars(parsed(parser, arguments, optional=True))  # `report A B` has none
    command, config_file, overrides = map(given.pop, ("command", "config_file", "overrides"))
    given["only"] = tuple(given["only"] or ())
    return execute(command, config_file, overrides, Options(**given))


if __name__ == "__main__":
    sys.exit(main())
