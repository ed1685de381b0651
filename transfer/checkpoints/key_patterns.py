"""Tables of patterns: how other projects spell the entries of torchvision's ResNet.

A spelling is a list of patterns; each takes a name apart into what stands before the encoder and
the entry's name in torchvision's spelling. Patterns are anchored at both ends and at dots, so that
`momentum_backbone.` is never taken for `backbone.`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

ENTRY = r"(?P<entry>weight|bias|running_mean|running_var|num_batches_tracked)"
BEFORE = r"(?P<before>(?:[^.]+\.)*?)"
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
TRANSPARENT = (*WRAPPERS, "net")
INNER = rf"(?:(?:{'|'.join(WRAPPERS)})\.)*"

Names = Callable[[re.Match[str]], str]


def _same(match: re.Match[str]) -> str:
    return match["rest"]


def _mapped(offset: int, part: Names) -> Names:
    return lambda m: f"layer{int(m['stage']) + offset}.{m['block']}.{part(m)}"


def _counted(match: re.Match[str]) -> str:
    """Return conv or bn of a Sequential conv, bn, (relu,) conv, bn, (relu,) conv, bn."""
    index, period = int(match["index"]), 3 if "convolutional" in match[0] else 2
    kind = ("conv", "bn")[index % period] if index % period < 2 else "relu"
    return f"{kind}{index // period + 1}.{match['entry']}"


def _hf(match: re.Match[str]) -> str:
    kind = "conv" if match["kind"] == "convolution" else "bn"
    return f"{kind}{int(match['index']) + 1}.{match['entry']}"


def _caffe2(match: re.Match[str]) -> str:
    entries = {"w": "weight", "bn_gamma": "weight", "bn_beta": "bias",
               "bn_running_mean": "running_mean", "bn_running_var": "running_var"}  # fmt: skip
    norm = match["what"].startswith("bn_")
    if match["branch"] == "1":
        return f"downsample.{int(norm)}.{entries[match['what']]}"
    index = "abc".index(match["branch"][1]) + 1
    return f"{'bn' if norm else 'conv'}{index}.{entries[match['what']]}"


SPELLINGS: dict[str, tuple[tuple[str, Names], ...]] = {
    "torchvision": (
        (r"(?P<rest>(?:conv1|bn1|layer\d+)\..+)",
         lambda m: re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", m["rest"])),
    ),
    "sequential": (
        (rf"(?P<stage>[4-7])\.{INNER}(?P<block>\d+)\.{INNER}"
         r"(?P<rest>(?:conv\d|bn\d|downsample|shortcut)\..+)", _mapped(-3, _same)),
        (rf"0\.{INNER}weight", lambda m: "conv1.weight"),
        (rf"1\.{INNER}{ENTRY}", lambda m: f"bn1.{m['entry']}"),
    ),
    "hugging-face": (
        (r"embedder\.embedder\.convolution\.weight", lambda m: "conv1.weight"),
        (rf"embedder\.embedder\.normalization\.{ENTRY}", lambda m: f"bn1.{m['entry']}"),
        (r"encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)\.layer\.(?P<index>\d+)\."
         rf"(?P<kind>convolution|normalization)\.{ENTRY}", _mapped(1, _hf)),
        (r"encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)\.shortcut\."
         rf"(?P<kind>convolution|normalization)\.{ENTRY}",
         _mapped(1, lambda m: f"downsample.{int(m['kind'] == 'normalization')}.{m['entry']}")),
    ),
    "classy": (
        (r"initial_block\._module\.0\.weight", lambda m: "conv1.weight"),
        (rf"initial_block\._module\.1\.{ENTRY}", lambda m: f"bn1.{m['entry']}"),
        (r"blocks\.(?P<stage>\d+)\.block(?P=stage)-(?P<block>\d+)\.convolutional_block\."
         rf"(?P<index>\d+)\.{ENTRY}", _mapped(1, _counted)),
        (rf"blocks\.(?P<stage>\d+)\.block(?P=stage)-(?P<block>\d+)\.bn\.{ENTRY}",
         _mapped(1, lambda m: f"bn_last.{m['entry']}")),
        (r"blocks\.(?P<stage>\d+)\.block(?P=stage)-(?P<block>\d+)\."
         rf"(?P<rest>downsample\.\d+\.{ENTRY})", _mapped(1, _same)),
    ),
    "simclr-v2": (
        (r"(?:net\.)?(?P<stage>[1-4])\.blocks\.(?P<block>\d+)\.net\.(?P<index>[024])\.weight",
         _mapped(0, lambda m: f"conv{int(m['index']) // 2 + 1}.weight")),
        (rf"(?:net\.)?(?P<stage>[1-4])\.blocks\.(?P<block>\d+)\.net\.(?P<index>[135])\.0\.{ENTRY}",
         _mapped(0, lambda m: f"bn{(int(m['index']) + 1) // 2}.{m['entry']}")),
        (r"(?:net\.)?(?P<stage>[1-4])\.blocks\.(?P<block>\d+)\.projection\.shortcut\.weight",
         _mapped(0, lambda m: "downsample.0.weight")),
        (rf"(?:net\.)?(?P<stage>[1-4])\.blocks\.(?P<block>\d+)\.projection\.bn\.0\.{ENTRY}",
         _mapped(0, lambda m: f"downsample.1.{m['entry']}")),
        (r"(?:net\.)?(?P<stage>[1-4])\.blocks\.(?P<block>\d+)\.(?P<rest>(?:net|projection)\..+)",
         _mapped(0, lambda m: f"{m['rest']}")),
        (r"(?:net\.)?0\.0\.weight", lambda m: "conv1.weight"),
        (rf"(?:net\.)?0\.1\.0\.{ENTRY}", lambda m: f"bn1.{m['entry']}"),
        (r"(?:net\.)?0\.(?P<rest>[2-9]\..+)", lambda m: f"stem.{m['rest']}"),
    ),
    "caffe2": (
        (r"conv1_w", lambda m: "conv1.weight"),
        (r"res_conv1_bn_gamma", lambda m: "bn1.weight"),
        (r"res_conv1_bn_beta", lambda m: "bn1.bias"),
        (r"res_conv1_bn_(?P<rest>running_mean|running_var)", lambda m: f"bn1.{m['rest']}"),
        (r"res(?P<stage>[2-5])_(?P<block>\d+)_branch(?P<branch>1|2[abc])_"
         r"(?P<what>w|bn_gamma|bn_beta|bn_running_mean|bn_running_var)", _mapped(-1, _caffe2)),
    ),
    "detectron2": (
        (r"stem\.conv1\.weight", lambda m: "conv1.weight"),
        (rf"stem\.conv1\.norm\.{ENTRY}", lambda m: f"bn1.{m['entry']}"),
        (rf"res(?P<stage>[2-5])\.(?P<block>\d+)\.conv(?P<index>\d)\.norm\.{ENTRY}",
         _mapped(-1, lambda m: f"bn{m['index']}.{m['entry']}")),
        (rf"res(?P<stage>[2-5])\.(?P<block>\d+)\.shortcut\.norm\.{ENTRY}",
         _mapped(-1, lambda m: f"downsample.1.{m['entry']}")),
        (r"res(?P<stage>[2-5])\.(?P<block>\d+)\.shortcut\.weight",
         _mapped(-1, lambda m: "downsample.0.weight")),
        (r"res(?P<stage>[2-5])\.(?P<block>\d+)\.(?P<rest>conv\d\..+)", _mapped(-1, _same)),
    ),
    "lightly-own": (
        (r"(?P<stage>[2-6])\.(?P<block>\d+)\.(?P<rest>(?:conv\d|bn\d|shortcut)\..+)",
         _mapped(-1, _same)),
        (r"[01]\.weight", lambda m: "conv1.weight"),
    ),
}  # fmt: skip
_COMPILED = {
    spelling: [(re.compile(BEFORE + pattern), names) for pattern, names in table]
    for spelling, table in SPELLINGS.items()
}


def split(spelling: str, name: str) -> tuple[str, str] | None:
    """Return what stands before the encoder in `name`, and torchvision's name of the entry."""
    for pattern, names in _COMPILED[spelling]:
        match = pattern.fullmatch(name)
        if match is not None:
            return match["before"], without_wrappers(names(match))
    return None


def without_wrappers(name: str) -> str:
    """Return a name inside an encoder without what DDP and torch.compile put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def role(prefix: str) -> str:
    """Return what an encoder is called, wrappers left out: `module.net.backbone.` is `backbone`."""
    return ".".join(part for part in prefix.split(".") if part and part not in TRANSPARENT)
