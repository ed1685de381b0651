"""Every recipe in configs/pretrain against the published tables, value by value after all bases."""

from pathlib import Path

import pytest

from pipeline.config.yaml_files import apply_overrides, load_yaml
from pipeline.stages.signature import identity_of, signature_of
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
cw_rgp_2_cifar10         607c66e3a46230ed
cw_rgp_2_cifar100        28927b6729d17c9b
cw_rgp_2_imagenet        2a9314763014e14e
cw_rgp_2_imagenet100     bb6e3671a6e9c196
cw_rgp_2_stl10           66583530fd66c1c8
cw_rgp_2_tiny_imagenet   c132a463ac73a671
cw_rgp_4_cifar10         e1b93bc57cdadeda
cw_rgp_4_cifar100        de96a1ca595f8fcd
cw_rgp_4_imagenet        da6c27f4f51e149d
cw_rgp_4_imagenet100     e91cc351c41bdba6
cw_rgp_4_imagenet_200    5d0036e1796e0829
cw_rgp_4_stl10           19492c4c28bb493e
cw_rgp_4_tiny_imagenet   174d4dd013cb4e7b
digits_cw_rgp            9f6fdb60dff1e1c4
digits_w_mse             072f424c392d293d
w_mse_2_cifar10          5a0b9a36bb607dd1
w_mse_2_cifar100         ae9c23fe487fd902
w_mse_2_imagenet         3d74fbcb16beef96
w_mse_2_imagenet100      71a54567342808f1
w_mse_2_stl10            8807f756428bdb5e
w_mse_2_tiny_imagenet    fb4a346aeb201538
w_mse_4_cifar10          98077c2ddc78f2fa
w_mse_4_cifar100         691c47884e3b5c33
w_mse_4_imagenet         9e6aacdcd5f7c1b6
w_mse_4_imagenet100      cc07dc933432d2f5
w_mse_4_stl10            01c57db470147152
w_mse_4_tiny_imagenet    d8723e4da00ebc7a
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
    others = ("digits_", "probe_")
    found = {path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith(others)}
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
