"""Convert a ResNet checkpoint to detectron2 weights that compute what torchvision does of it."""

import sys
from argparse import ArgumentParser, BooleanOptionalAction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import answered, leave_on_signals, need_packages

need_packages()
from transfer.checkpoints.families import FORMATS
from transfer.checkpoints.other_files import check_present
from transfer.config.convert import check_places, stated_input
from transfer.hub.snapshot import local_checkpoint


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when OUTPUT and its companion .json are written, 2 when the input is refused."""
    example = "example: python tools/convert_to_detectron2.py runs/cw-rgp/backbone.pth cw-rgp.pkl"
    parser = ArgumentParser(description=__doc__, epilog=example)
    parser.add_argument("input", metavar="INPUT", help="file, folder or hf://ORG/NAME@REVISION")
    parser.add_argument("output", type=Path, metavar="OUTPUT.pkl", help="detectron2 weights")
    parser.add_argument("--format", help=f"family, where not recognised: {', '.join(FORMATS)}")
    parser.add_argument("--encoder", help="encoder to take: its prefix, such as module.encoder_q.")
    fed = parser.add_argument_group("how the network was fed, where file and family say it wrong")
    fed.add_argument("--input-order", type=str.upper, choices=("RGB", "BGR"))
    for name in ("--pixel-mean", "--pixel-std"):
        fed.add_argument(name, type=float, nargs=3, help="of pixels from 0 to 255")
    fed.add_argument("--stride-in-1x1", action=BooleanOptionalAction, help="maps halve in the 1x1")
    options = parser.parse_args(arguments)
    try:
        check_places(Path(options.input), options.output)
        source = local_checkpoint(options.input)
        check_present(source, options.format)
        stated = stated_input(options.input_order, options.pixel_mean,
                              options.pixel_std, options.stride_in_1x1)  # fmt: skip
        from transfer.convert import convert_checkpoint, summary  # noqa: PLC0415  (imports numpy)

        report = convert_checkpoint(source, options.output, format=options.format,
                                    encoder=options.encoder, stated=stated)  # fmt: skip
        print("\n".join(summary(report, options.output)))
        return 0
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  (an untrusted file found a gap)
        return answered(Path(__file__).stem, options.input, error)


if __name__ == "__main__":
    leave_on_signals()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
