"""Convert a ResNet checkpoint to detectron2 weights, and prove that nothing was lost."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from transfer.checkpoints.families import FORMATS
from transfer.messages import one_line, refusal

EXAMPLE = """example:
  python tools/convert_to_detectron2.py runs/cw-rgp/backbone.pth cw-rgp.pkl"""


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when OUTPUT and its companion .json are written, 2 when the input is refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="checkpoint file")
    parser.add_argument("output", type=Path, metavar="OUTPUT.pkl", help="detectron2 weights")
    parser.add_argument("--format", help=f"family, where not recognised: {', '.join(FORMATS)}")
    parser.add_argument("--encoder", help="encoder to take: its prefix, such as module.encoder_q.")
    options = parser.parse_args(arguments)
    from transfer.convert import convert_checkpoint  # noqa: PLC0415  (--help needs none of it)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # fvcore's, at import
            report = convert_checkpoint(
                options.input, options.output, format=options.format, encoder=options.encoder
            )
    except (ValueError, OSError) as error:
        print(f"convert_to_detectron2: {one_line(error)[:370]}", file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001  (an untrusted file found a gap: still one line)
        line = refusal(options.input, one_line(f"unexpected {type(error).__name__}: {error}"))
        print(f"convert_to_detectron2: {line}", file=sys.stderr)
        return 2
    print(
        f"{options.output}: {report.arch}, {report.num_entries} entries, format {report.format}; "
        f"largest relative feature difference {report.largest_feature_difference:.1e}"
    )
    print(f"  encoder {report.encoder or '(no prefix)'}")
    for label, entries in (
        ("also there", report.other_encoders),
        ("note", report.notes),
        ("unknown, not loaded", report.unknown_references),
    ):
        if entries:
            print(f"  {label}: {', '.join(entries)}")
    for key, value in report.detectron2.items():
        print(f"  {key} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
