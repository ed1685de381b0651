"""Every recipe in configs/pretrain against the published tables, value by value after all bases."""

from pathlib import Path

import pytest

from pipeline.config.yaml_files import apply_overrides, load_yaml
from pipeline.stages.stage import identity_of, signature_of
from pretrain.config.pretrain import PretrainConfig
from pretrain.training.schedule import Length, lr_factor

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "pretrain"

# Published: htdt/self-supervised (W-MSE) and winci-ai/CW-RGP; then ours, where they have no script.
TABLE = """
name                     views batch dim  sub groups iters epochs lr    hidden layers zero arch
w_mse_4_cifar10          4     256   64   128 1      1     1000   3e-3  1024   2      no   resnet18
w_mse_4_cifar100         4     256   64   128 1      1     1000   3e-3  1024   2      no   resnet18
w_mse_4_stl10            4     256   128  256 1      1     2000   2e-3  1024   2      no   resnet18
w_mse_4_tiny_imagenet    4     256   128  256 1      1     1000   2e-3  1024   2      no   resnet18
w_mse_2_cifar10          2     512   64   128 1      1     1000   3e-3  1024   2      no   resnet18
w_mse_2_cifar100         2     512   64   128 1      1     1000   3e-3  1024   2      no   resnet18
w_mse_2_stl10            2     512   128  256 1      4     2000   2e-3  1024   2      no   resnet18
w_mse_2_tiny_imagenet    2     512   128  256 1      4     1000   2e-3  1024   2      no   resnet18
w_mse_2_imagenet100      2     512   128  256 1      1     240    2e-3  1024   2      no   resnet18
w_mse_4_imagenet100      4     256   128  256 1      1     240    2e-3  1024   2      no   resnet18
cw_rgp_4_cifar10         4     256   512  64  4      1     1000   3e-3  1024   2      yes  resnet18
cw_rgp_4_cifar100        4     256   512  64  4      1     1000   3e-3  1024   2      yes  resnet18
cw_rgp_4_stl10           4     256   512  64  4      1     2000   2e-3  1024   2      yes  resnet18
cw_rgp_4_tiny_imagenet   4     256   1024 128 2      1     1000   2e-3  2048   2      yes  resnet18
cw_rgp_2_cifar10         2     256   512  64  4      4     1000   3e-3  1024   2      yes  resnet18
cw_rgp_2_cifar100        2     512   512  64  4      1     1000   3e-3  1024   2      yes  resnet18
cw_rgp_2_stl10           2     512   512  64  4      1     2000   2e-3  1024   2      yes  resnet18
cw_rgp_2_tiny_imagenet   2     512   1024 128 2      1     1000   2e-3  2048   2      yes  resnet18
cw_rgp_4_imagenet        4     512   1024 128 2      1     100    0.1   2048   3      yes  resnet50
cw_rgp_4_imagenet_200    4     512   1024 128 2      1     200    0.1   2048   3      yes  resnet50
cw_rgp_2_imagenet100     2     512   1024 128 2      1     240    2e-3  2048   2      yes  resnet18
cw_rgp_4_imagenet100     4     256   1024 128 2      1     240    2e-3  2048   2      yes  resnet18
cw_rgp_2_imagenet        2     512   1024 128 2      1     100    0.1   2048   3      yes  resnet50
w_mse_2_imagenet         2     512   128  256 1      1     100    0.1   1024   2      no   resnet50
w_mse_4_imagenet         4     512   128  256 1      1     100    0.1   1024   2      no   resnet50
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]
RECIPES = {row[0]: dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]}

# A change here means that every finished run of that recipe will be run again.
SIGNATURES = """
cw_rgp_2_cifar10         632b9778cf7f353a
cw_rgp_2_cifar100        6a6e7378023d5115
cw_rgp_2_imagenet        4c28bcb6a4aae531
cw_rgp_2_imagenet100     a92072c8cca3c72a
cw_rgp_2_stl10           3eaa297fe24f0123
cw_rgp_2_tiny_imagenet   9e7230485ece922f
cw_rgp_4_cifar10         4f4e08e43a9f0c30
cw_rgp_4_cifar100        3fbc9fbf501c7ac6
cw_rgp_4_imagenet        9d7ee55e4d754177
cw_rgp_4_imagenet100     df48cfd9e521177c
cw_rgp_4_imagenet_200    750532f842d1f8a4
cw_rgp_4_stl10           3c5c47d0330307f4
cw_rgp_4_tiny_imagenet   2d5e906dc39b07b7
digits_cw_rgp            7ffbb71e1c50db43
digits_w_mse             6dd90a6a3e3bf810
w_mse_2_cifar10          640628369cffd5a8
w_mse_2_cifar100         e4f6deb31d100341
w_mse_2_imagenet         165b285a25bcf958
w_mse_2_imagenet100      ee79f26a203d02ee
w_mse_2_stl10            5a47649a6a27d3eb
w_mse_2_tiny_imagenet    8e742d4f195cc9f6
w_mse_4_cifar10          169ee0dfabfc6dd7
w_mse_4_cifar100         5cb0d15496155d4e
w_mse_4_imagenet         804ceff285709a74
w_mse_4_imagenet100      7491ddd9bf3dc139
w_mse_4_stl10            eb33236c167af6d3
w_mse_4_tiny_imagenet    0a77b10847e4fd7f
"""

# data: format, view, stem, mean and std; augmentation: crop from, jitter, gray, blur, interpolation
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
TINY = ((0.480, 0.448, 0.398), (0.277, 0.269, 0.282))
MILD = (0.2, (0.4, 0.4, 0.4, 0.1), 0.1, 0.0, "bicubic")
SETS = {
    "cifar10": ("cifar10", 32, "small-no-pool", *CIFAR, MILD),
    "cifar100": ("cifar100", 32, "small-no-pool", *CIFAR100, MILD),
    "stl10": ("stl10", 64, "small", (0.43, 0.42, 0.39), (0.27, 0.26, 0.27), MILD),
    "tiny_imagenet": ("imagefolder", 64, "small", *TINY, MILD),
    "imagenet100": (
        "imagefolder", 224, "imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
        (0.08, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, "bicubic"),
    ),
    "imagenet": (
        "imagefolder", 224, "imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
        (0.2, (0.4, 0.4, 0.4, 0.1), 0.2, 0.5, "bilinear"),
    ),
}  # fmt: skip


def resolved(name: str, *overrides: str) -> PretrainConfig:
    content = apply_overrides(load_yaml(FOLDER / f"{name}.yaml"), list(overrides))
    return PretrainConfig.model_validate(content)


def test_every_recipe_is_in_the_table() -> None:
    found = {path.stem for path in FOLDER.glob("*.yaml") if path.stem.startswith(("w_mse", "cw_"))}
    assert found == set(RECIPES)
    assert all(len((FOLDER / f"{name}.yaml").read_text().splitlines()) <= 8 for name in found)


@pytest.mark.parametrize("name", RECIPES)
def test_model_loss_and_optimiser_are_the_tables(name: str) -> None:
    config, row = resolved(name), RECIPES[name]
    loss, model, optimizer = config.loss, config.model, config.optimizer
    found = [
        config.num_views, config.batch_size, model.embedding_dim, loss.sub_batch, loss.groups,
        loss.iterations, config.epochs, pytest.approx(optimizer.base_lr(config.batch_size)),
        model.projector_hidden, model.projector_layers,
    ]  # fmt: skip
    columns = [name for name in ROWS[0] if name not in ("name", "zero", "arch")]
    assert found == [float(row[column]) for column in columns]
    assert model.zero_init_residual == (row["zero"] == "yes")
    assert (model.arch, model.encoder_batchnorm) == (row["arch"], "per-view")
    channels = name.startswith("cw_rgp")
    assert config.method == loss.name == ("cw-rgp" if channels else "w-mse")
    assert (loss.over, loss.method) == (("channels", "zca") if channels else ("batch", "cholesky"))
    assert (loss.eps, loss.normalize, loss.random_partition) == (0.0, True, channels)
    assert (optimizer.warmup_steps, optimizer.lr_update) == (500, "epoch")
    if name.endswith(("imagenet", "imagenet_200")) and "tiny" not in name:
        assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
        assert (optimizer.schedule, optimizer.lr_per_256) == ("cosine", 0.05)
        assert config.compute.sync_batchnorm
    else:
        assert (optimizer.name, optimizer.weight_decay) == ("adam", 1e-6)
        assert (optimizer.schedule, optimizer.drop_factor) == ("step", 0.2)
        assert optimizer.drop_epochs_before_end == (50, 25)


@pytest.mark.parametrize("name", RECIPES)
def test_data_stem_and_augmentation_are_the_tables(name: str) -> None:
    config = resolved(name)
    key = name.split("_", 3)[3].removesuffix("_200")
    augment = config.augment
    data_format, size, stem, mean, std, (crop, jitter, gray, blur, interpolation) = SETS[key]
    assert (config.data.format, config.data.name) == (data_format, key.replace("_", "-"))
    assert (augment.size, config.model.stem) == (size, stem)
    assert (augment.mean, augment.std) == (mean, std)
    assert (augment.crop_scale, augment.crop_ratio) == ((crop, 1.0), (3 / 4, 4 / 3))
    assert (augment.jitter, augment.jitter_probability) == (jitter, 0.8)
    assert (augment.grayscale, augment.blur_probability) == (gray, blur)
    assert (augment.flip, augment.blur_sigma) == (0.5, (0.1, 2.0))
    assert (augment.interpolation, augment.rotation_degrees) == (interpolation, 0)
    assert augment.noise_std == 0
    assert augment.colours_before_crop == (key != "imagenet")


def test_the_covariance_term_belongs_to_published_imagenet_runs() -> None:
    found = {
        name: (
            config.loss.covariance_weight,
            config.loss.covariance_batch,
            config.covariance_epochs,
        )
        for name in RECIPES
        if (config := resolved(name)).loss.covariance_weight
    }
    assert found == {
        "cw_rgp_4_imagenet": (0.005, 128, 50),
        "cw_rgp_4_imagenet_200": (0.01, 128, 100),
    }


def test_drops_stay_50_and_25_epochs_before_the_end_of_a_shorter_run() -> None:
    config = resolved("w_mse_4_cifar10", "epochs=200")
    length = Length.of(config, 50_000)
    steps = 50_000 // 256
    factors = [
        lr_factor(epoch * steps - before, length, config.optimizer)
        for epoch in (150, 175)
        for before in (1, 0)
    ]
    assert factors == pytest.approx([1.0, 0.2, 0.2, 0.04])


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_any_encoder_by_one_override(arch: str) -> None:
    assert resolved("cw_rgp_4_imagenet", f"model.arch={arch}").model.arch == arch


def test_signatures_are_pinned() -> None:
    pinned = dict(line.split() for line in SIGNATURES.strip().splitlines())
    assert {*RECIPES, "digits_cw_rgp", "digits_w_mse"} == set(pinned)
    assert {name: signature_of(identity_of(resolved(name))) for name in pinned} == pinned


def of_base(name: str) -> PretrainConfig:
    content = load_yaml(FOLDER / "bases" / f"imagenet_{name}.yaml")
    return PretrainConfig.model_validate(content | {"method": "x", "loss": {"name": "none"}})


def test_asymmetric_views_are_byols() -> None:
    config = of_base("asymmetric")
    first, second = config.augment.of_views(config.num_views)
    assert (first.blur_probability, first.solarize) == (1.0, 0.0)
    assert (second.blur_probability, second.solarize) == (0.1, 0.2)
    for view in (first, second):
        assert (view.size, view.crop_scale, view.grayscale) == (224, (0.08, 1.0), 0.2)
        assert (view.jitter, view.jitter_probability) == ((0.4, 0.4, 0.2, 0.1), 0.8)
        assert (view.interpolation, view.flip, view.blur_sigma) == ("bicubic", 0.5, (0.1, 2.0))
        assert view.solarize_threshold == 128 / 255


def test_multi_crop_is_intls() -> None:
    config = of_base("multi_crop")
    views = config.augment.of_views(config.num_views)
    assert config.view_sizes == [224, 224, 192, 160, 128, 96]
    assert [view.crop_scale for view in views[1:]] == list(
        zip((0.2, 0.171, 0.143, 0.114, 0.086), (1.0, 0.857, 0.714, 0.571, 0.429), strict=True)
    )
    for view in views:
        assert (view.blur_probability, view.solarize, view.grayscale) == (0.5, 0.1, 0.2)
        assert (view.jitter, view.interpolation) == ((0.4, 0.4, 0.2, 0.1), "bicubic")
