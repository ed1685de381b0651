"""Recipes of the methods that whitening is compared with, against what is published of them."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.stage import identity_of, signature_of
from pretrain.config.methods import LOSS_NAMES, INTLConfig
from pretrain.config.pretrain import PretrainConfig
from tests.pretrain.config.test_recipes import FOLDER, MILD, SETS, resolved

NAMES = ("simclr", "barlow-twins", "vicreg", "simsiam", "byol", "moco-v2", "intl")

# small images: the recipe of W-MSE 2 with that loss for simclr and byol, that of CW-RGP 2 for those
# that only CW-RGP's code has, nobody's for moco-v2; INTL's own
SMALL = """
method       optimizer layers last
simclr       adam      2      affine
byol         adam      2      none
barlow-twins adam      2      none
vicreg       adam      2      none
simsiam      adam      3      plain
moco-v2      adam      2      none
intl         sgd       3      none
"""
# epochs, learning rate of Adam, D as W-MSE's, hidden width and D as CW-RGP's
OF_SET = {
    "cifar10": (1000, 3e-3, 64, (1024, 512)),
    "cifar100": (1000, 3e-3, 64, (1024, 512)),
    "stl10": (2000, 2e-3, 128, (1024, 512)),
    "tiny_imagenet": (1000, 2e-3, 128, (2048, 1024)),
    "imagenet100": (240, 2e-3, 128, (2048, 1024)),
}
CONSTANTS: dict[str, dict[str, Any]] = {
    "simclr": {"temperature": 0.5},
    "byol": {"momentum": 0.99, "predictor_hidden": 1024},
    "barlow-twins": {"redundancy_weight": 0.008},
    "vicreg": {"invariance_weight": 25, "variance_weight": 50, "covariance_weight": 1, "eps": 1e-4},
    "simsiam": {"predictor_hidden": 512, "constant_predictor_rate": False},
    "moco-v2": {"temperature": 0.2},
    "intl": {"over": "channels", "newton_iterations": 4, "trace_weight": None, "momentum": None},
}

IMAGENET = """
recipe                   epochs batch optimizer lr   decay warmup layers hidden dim  last  zero end
moco_v2_2_imagenet       200    256   sgd       0.03 1e-4  0      2      2048   128  none  no   0
simsiam_2_imagenet       100    512   sgd       0.05 1e-4  0      3      2048   2048 plain yes  0
simclr_2_imagenet        100    4096  lars      0.3  1e-6  10     2      2048   128  none  yes  0
byol_2_imagenet          300    4096  lars      0.3  1e-6  10     2      4096   256  none  yes  0
barlow_twins_2_imagenet  1000   2048  lars      0.2  1e-6  10     3      8192   8192 none  yes  .001
vicreg_2_imagenet        100    2048  lars      0.3  1e-6  10     3      8192   8192 none  yes  .001
intl_2_imagenet          800    256   sgd       0.3  1e-5  2      3      8192   8192 none  yes  .001
intl_6_imagenet          100    256   sgd       0.5  1e-5  2      3      8192   8192 none  yes  .001
intl_6_imagenet_200      200    256   sgd       0.4  1e-5  2      3      8192   8192 none  yes  .001
"""
ON_IMAGENET: dict[str, dict[str, Any]] = {
    "moco_v2": {"queue": 65536, "temperature": 0.2, "momentum": 0.999},
    "simsiam": {"predictor_hidden": 512, "constant_predictor_rate": True},
    "simclr": {"temperature": 0.1},
    "byol": {"momentum": 0.996, "predictor_hidden": 4096},
    "barlow_twins": {"redundancy_weight": 0.0051, "scale": 1.0},
    "vicreg": CONSTANTS["vicreg"] | {"variance_weight": 25},  # of the mean, not the sum
    "intl_2": CONSTANTS["intl"],
    "intl_6": CONSTANTS["intl"] | {"momentum": 0.996},
}
# A change here means that every finished run of that recipe will be run again.
SIGNATURES = """
barlow_twins_2_cifar10   1a32e3ddafc2685c
barlow_twins_2_cifar100  1783b9791953c113
barlow_twins_2_imagenet  55c062c05f8455a4
barlow_twins_2_imagenet100 6541ed7800cb1704
barlow_twins_2_stl10     ed822863553c9788
barlow_twins_2_tiny_imagenet d49cbced1e803611
byol_2_cifar10           6fc1cfc005898c21
byol_2_cifar100          85cdc7083c5aac4a
byol_2_imagenet          d15349470e8b2161
byol_2_imagenet100       52edcd2175f83f81
byol_2_stl10             4694c13657e5529a
byol_2_tiny_imagenet     8e0a471f467bcffe
digits_barlow_twins      e900873a0471fd78
digits_byol              43221369a2994e5b
digits_intl              ebd7d980f5f1c8cd
digits_moco_v2           0c65d0208035395c
digits_simclr            bb6628b60c06c2af
digits_simsiam           5096fee7ab89fce8
digits_vicreg            05e1a01414cb6022
intl_2_cifar10           c5929184e7b52f37
intl_2_cifar100          abeefa03a78ce0ab
intl_2_imagenet          0dc3eae582cf53c7
intl_2_imagenet100       766a92dc7073db61
intl_2_stl10             14248420e9f73592
intl_2_tiny_imagenet     a2315fb123513722
intl_6_imagenet          2793fe09fb7a9bf5
intl_6_imagenet_200      13ad418ade4bb9d1
moco_v2_2_cifar10        e766800659d664e1
moco_v2_2_cifar100       07d07df84ca8589c
moco_v2_2_imagenet       c90902c8b9ad2020
moco_v2_2_imagenet100    29477cc94fca0f51
moco_v2_2_stl10          b208b6ac8c4ddf9b
moco_v2_2_tiny_imagenet  82bf751968e9c42d
simclr_2_cifar10         04529359b8cf9a95
simclr_2_cifar100        96c1a9bad300adfd
simclr_2_imagenet        14dd4529ef0dedcf
simclr_2_imagenet100     acee67e9eec9470b
simclr_2_stl10           681084fa47fcadcf
simclr_2_tiny_imagenet   e6c3c0bee258e109
simsiam_2_cifar10        13b7b6eb9b901abe
simsiam_2_cifar100       4d28cdc6b54c3fdb
simsiam_2_imagenet       c1635fde10f00f11
simsiam_2_imagenet100    e42c01eb779bd149
simsiam_2_stl10          3d71b8183d4625d9
simsiam_2_tiny_imagenet  929d145e5e136a5a
vicreg_2_cifar10         47ab875144346202
vicreg_2_cifar100        7d9753345b9649a0
vicreg_2_imagenet        82d722e0fe6f7e7b
vicreg_2_imagenet100     8d66caf84d3b0a25
vicreg_2_stl10           0b5dfb3be0c1f1df
vicreg_2_tiny_imagenet   10bbc700b36df969
"""
MOCO_VIEW = ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.2, 0.5, 0.0)  # crop, jitter, gray, blur, solarise
SIMCLR_VIEW = ((0.08, 1.0), (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0.0)
ASYMMETRIC = [
    ((0.08, 1.0), (0.4, 0.4, 0.2, 0.1), 0.2, 1.0, 0.0),
    ((0.08, 1.0), (0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2),
]
INTL_COLOURS = {  # its code divides by other numbers than that of W-MSE
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
NUM_IMAGENET = 1_281_167


def rows(table: str) -> list[dict[str, str]]:
    names, *lines = (line.split() for line in table.strip().splitlines())
    return [dict(zip(names, line, strict=True)) for line in lines]


def recipe_of(method: str, views: int, data: str) -> str:
    return f"{method.replace('-', '_')}_{views}_{data}"


def constants(config: PretrainConfig, wanted: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(config.loss, name) for name in wanted}


def drawn(config: PretrainConfig) -> list[Any]:
    return [
        (v.crop_scale, v.jitter, v.grayscale, v.blur_probability, v.solarize)
        for v in config.augment.of_views(config.num_views)
    ]


def test_every_method_has_a_recipe_for_every_set() -> None:
    wanted = {recipe_of(name, 2, data) for name in NAMES for data in SETS}
    wanted |= {row["recipe"] for row in rows(IMAGENET)}
    wanted |= {f"digits_{name.replace('-', '_')}" for name in (*NAMES, "w-mse", "cw-rgp", "base")}
    others_of_digits = {f"digits_{name.replace('-', '_')}" for name in LOSS_NAMES}
    others = ("w_mse", "cw_", "probe_", "own_")
    files = [path for path in FOLDER.glob("*.yaml") if not path.stem.startswith(others)]
    assert wanted <= {path.stem for path in files} <= wanted | others_of_digits
    assert all(
        len(path.read_text().splitlines()) <= 10 for path in files if "base" not in path.stem
    )


@pytest.mark.parametrize("data", OF_SET)
@pytest.mark.parametrize("row", rows(SMALL), ids=lambda row: row["method"])
def test_small_images_have_the_recipe_of_the_whitening_code(row: dict[str, str], data: str) -> None:
    method = row["method"]
    config = resolved(recipe_of(method, 2, data))
    model, optimizer, loss = config.model, config.optimizer, config.loss
    assert config.method == loss.name == method
    assert constants(config, CONSTANTS[method]) == CONSTANTS[method]
    epochs, lr, dim, (wide_hidden, wide_dim) = OF_SET[data]
    of_cw_rgp = method in ("barlow-twins", "vicreg", "simsiam")
    assert (model.arch, model.last_batchnorm) == ("resnet18", row["last"])
    assert (config.num_views, model.projector_layers) == (2, int(row["layers"]))
    assert optimizer.name == row["optimizer"]
    assert model.zero_init_residual == of_cw_rgp
    assert model.hidden_batchnorm == (method != "moco-v2")
    data_format, size, stem, mean, std, _ = SETS[data]
    assert (config.data.format, config.data.name) == (data_format, data.replace("_", "-"))
    assert (config.augment.size, model.stem) == (size, stem)
    of_code = INTL_COLOURS.get(data) if method == "intl" else None
    assert (config.augment.mean, config.augment.std) == (of_code or (mean, std))
    if method == "intl":
        return
    assert (config.batch_size, config.epochs, optimizer.weight_decay) == (512, epochs, 1e-6)
    assert optimizer.base_lr(512) == lr and optimizer.warmup_steps == 500
    assert (optimizer.drop_epochs_before_end, optimizer.drop_factor) == ((50, 25), 0.2)
    if of_cw_rgp:
        assert (model.projector_hidden, model.embedding_dim) == (wide_hidden, wide_dim)
    else:
        assert model.projector_hidden == 1024
        assert model.embedding_dim == (128 if method == "moco-v2" else dim)
    assert config.augment.colours_before_crop and not config.augment.views
    if data != "imagenet100":
        assert drawn(config) == [((MILD[0], 1.0), *MILD[1:4], 0.0)] * 2


@pytest.mark.parametrize(
    ("data", "images"), [("cifar10", 50_000), ("cifar100", 50_000), ("stl10", 105_000),
                         ("tiny_imagenet", 100_000)],
)  # fmt: skip
def test_intl_on_small_images_is_its_codes(data: str, images: int) -> None:
    config = resolved(f"intl_2_{data}")
    model, optimizer = config.model, config.optimizer
    assert (model.projector_hidden, model.embedding_dim) == (2048, 2048)
    assert (config.batch_size, config.epochs) == (256, OF_SET[data][0])
    assert (optimizer.lr_per_256, optimizer.weight_decay, optimizer.momentum) == (0.3, 1e-4, 0.9)
    assert optimizer.decay_norm_and_bias  # unlike on ImageNet
    assert optimizer.warmup_steps == 2 * (images // 256)
    assert (optimizer.schedule, optimizer.lr_update, optimizer.final_rate) == (
        "cosine", "step", 0.001,
    )  # fmt: skip
    view = ((0.08, 1.0), (0.4, 0.4, 0.2, 0.1), 0.2, 0.0)
    assert drawn(config) == [(*view, 0.0), (*view, 0.2)]
    assert not config.augment.colours_before_crop


def test_intl_on_imagenet100_is_its_scripts() -> None:
    config = resolved("intl_2_imagenet100")
    assert (config.batch_size, config.epochs, config.model.arch) == (128, 400, "resnet18")
    assert (config.optimizer.lr_per_256, config.optimizer.weight_decay) == (0.5, 2.5e-5)
    assert config.optimizer.warmup_steps == 2 * (126_689 // 128)
    assert not config.optimizer.decay_norm_and_bias
    assert (config.model.projector_hidden, config.model.embedding_dim) == (4096, 8192)
    assert drawn(config) == ASYMMETRIC


@pytest.mark.parametrize("row", rows(IMAGENET), ids=lambda row: row["recipe"])
def test_imagenet_has_each_methods_own_recipe(row: dict[str, str]) -> None:
    name = row["recipe"]
    config = resolved(name)
    model, optimizer = config.model, config.optimizer
    batch, lars = int(row["batch"]), row["optimizer"] == "lars"
    assert (config.epochs, config.batch_size) == (int(row["epochs"]), batch)
    assert (optimizer.name, optimizer.lr_per_256) == (row["optimizer"], float(row["lr"]))
    assert optimizer.weight_decay == float(row["decay"]) and optimizer.momentum == 0.9
    assert optimizer.warmup_steps == int(row["warmup"]) * (NUM_IMAGENET // batch)
    assert (optimizer.schedule, optimizer.final_rate) == ("cosine", float(row["end"]))
    assert optimizer.lr_update == ("epoch" if name.startswith(("moco", "simsiam")) else "step")
    assert optimizer.decay_norm_and_bias == (not lars and not name.startswith("intl"))
    barlow = name.startswith("barlow")
    assert 0.2 * optimizer.norm_and_bias_rate == pytest.approx(0.0048 if barlow else 0.2)
    assert model.arch == "resnet50" and model.zero_init_residual == (row["zero"] == "yes")
    assert (model.projector_layers, model.projector_hidden, model.embedding_dim) == tuple(
        int(row[key]) for key in ("layers", "hidden", "dim")
    )
    assert (model.last_batchnorm, model.hidden_batchnorm) == (row["last"], "moco" not in name)
    assert config.compute.sync_batchnorm == (not name.startswith("moco"))
    key = next(key for key in ON_IMAGENET if name.startswith(key))
    assert constants(config, ON_IMAGENET[key]) == ON_IMAGENET[key]


@pytest.mark.parametrize(
    ("name", "views"),
    [
        ("moco_v2", [MOCO_VIEW] * 2), ("simsiam", [MOCO_VIEW] * 2), ("simclr", [SIMCLR_VIEW] * 2),
        ("byol", ASYMMETRIC), ("barlow_twins", ASYMMETRIC), ("vicreg", ASYMMETRIC),
        ("intl", ASYMMETRIC),
    ],
)  # fmt: skip
def test_imagenet_has_each_methods_own_views(name: str, views: list[Any]) -> None:
    config = resolved(f"{name}_2_imagenet")
    assert drawn(config) == views
    assert not config.augment.colours_before_crop and config.augment.jitter_probability == 0.8
    assert config.augment.flip == 0.5 and config.view_sizes == [224, 224]


def test_intls_multi_crop_has_its_branch_and_six_sizes() -> None:
    for name in ("intl_6_imagenet", "intl_6_imagenet_200"):
        config = resolved(name)
        assert config.view_sizes == [224, 224, 192, 160, 128, 96]
        assert isinstance(config.loss, INTLConfig) and config.loss.momentum == 0.996
        assert config.loss.weight_of_trace(config.batch_size, 8192) == pytest.approx(0.05)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*_2_*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_can_be_spread_over_four_gpus(path: Path) -> None:
    assert resolved(path.stem).faults_on(4) == []


def test_signatures_are_pinned() -> None:
    pinned = dict(line.split() for line in SIGNATURES.strip().splitlines())
    assert {name: signature_of(identity_of(resolved(name))) for name in pinned} == pinned
    digits = {f"digits_{name.replace('-', '_')}" for name in NAMES}
    small = {recipe_of(name, 2, data) for name in NAMES for data in OF_SET}
    assert set(pinned) == small | digits | {row["recipe"] for row in rows(IMAGENET)}
