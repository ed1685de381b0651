"""Write a backbone as a folder that timm, torchvision, transformers or detectron2 load."""

import sys
from argparse import ArgumentParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import answered, leave_on_signals, need_packages

need_packages()
from transfer.checkpoints.families import FORMATS, check_format
from transfer.checkpoints.other_files import check_present
from transfer.hub.formats import LIBRARIES
from transfer.hub.snapshot import local_checkpoint

EXAMPLE = "example: python tools/export_backbone.py runs/cw-rgp exported/cw-rgp --format timm"


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when OUT_DIR is written, 2 when the input is refused."""
    parser = ArgumentParser(description=__doc__, epilog=EXAMPLE)
    what = "folder of a finished pretraining or conversion, or any checkpoint the converter reads"
    parser.add_argument("input", metavar="RUN_OR_CHECKPOINT", help=what)
    parser.add_argument("output", type=Path, metavar="OUT_DIR", help="a new folder")
    parser.add_argument("--format", required=True, choices=LIBRARIES, help="who is to load it")
    parser.add_argument("--family", metavar="NAME", help="of the checkpoint, where not recognised: "
                        f"{', '.join(FORMATS)}")  # fmt: skip
    parser.add_argument("--encoder", help="encoder to take: its prefix, such as module.encoder_q.")
    options = parser.parse_args(arguments)
    try:
        check_format(options.family)
        path = local_checkpoint(options.input)
        if not path.exists():
            check_present(path)  # says so before anything slow is imported
        from transfer.export import check_target, export_backbone, summary  # noqa: PLC0415

        check_target(options.output)
        export = export_backbone(path, options.output, options.format,
                                 family=options.family, encoder=options.encoder)  # fmt: skip
        print("\n".join(summary(export, options.output)))
        return 0
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  (an untrusted file found a gap)
        return answered(Path(__file__).stem, options.input, error)


if __name__ == "__main__":
    leave_on_signals()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
