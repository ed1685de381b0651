"""Resources of the kinds of stages, and what of them is refused."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config.schema import Container, Resources, ResourcesConfig


def test_finetuning_has_one_task_a_node_with_all_its_gpus() -> None:
    resources = Resources(gpus=8, nodes=2, cpus_per_gpu=4)
    assert (resources.tasks_per_node("finetune"), resources.cpus_per_task("finetune")) == (1, 32)
    assert (resources.tasks_per_node("pretrain"), resources.cpus_per_task("pretrain")) == (8, 4)
    assert resources.num_gpus == 16
    assert Resources(cpus_per_gpu=3).cpus_per_task("convert") == 3


def test_resources_of_a_kind_stand_on_the_default() -> None:
    config = ResourcesConfig.model_validate(
        {"default": {"partition": "gpu", "gpus": 1}, "pretrain": {"gpus": 8, "timeout_min": 1440}}
    )
    assert config.of("pretrain").gpus == 8 and config.of("pretrain").partition == "gpu"
    assert config.of("finetune").gpus == 1 and config.of("finetune").timeout_min == 60


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"pretrian": {}}, "unknown stage 'pretrian'; did you mean 'pretrain'? known: default"),
        ({"pretrain": {"extra": {"time": "1:00"}}}, "time: is set by timeout_min"),
        ({"pretrain": {"extra": {"job_name": "x"}}}, "job_name: is set by"),
        ({"pretrain": {"extra": {"a b": 1}}}, "a b: not the name of an sbatch option"),
        ({"pretrain": {"partition": "a\n#SBATCH --uid=0"}}, "match pattern"),
        ({"pretrain": {"extra": {"comment": "a\nrm -rf"}}}, "match pattern"),
        ({"default": {"timeout_min": 2}}, "is before the start"),
        ({"pretrain": {"gpu": 1}}, "Extra inputs are not permitted"),
        (
            {"default": {"mem_gb": 4}, "finetune": {"extra": {"mem_per_cpu": "2G"}}},
            "finetune: extra.mem-per-cpu and mem_gb contradict each other; give one of them",
        ),
        ({"default": {"mem_gb": 4, "extra": {"exclusive": True}}}, "extra.exclusive and mem_gb"),
        ({"default": {"gpus": 4, "extra": {"gres": "gpu:2"}}}, "extra.gres and gpus"),
        (
            {"default": {"extra": {"mem-per-cpu": 1, "mem-per-gpu": 1}}},
            "extra.mem-per-cpu and extra.mem-per-gpu contradict",
        ),
        ({"default": {"extra": {"clusters": "two"}}}, "clusters: is set by SLURM_CLUSTERS"),
        ({"default": {"container": {}}}, "Field required"),
        ({"default": {"container": {"image": "a\nb"}}}, "match pattern"),
        (
            {"default": {"container": {"image": "a.sif", "command": ["apptainer", "exec"]}}},
            "apptainer exec: wanted the word IMAGE once, behind what starts it, such as "
            "[apptainer, exec, --nv, IMAGE, python]",
        ),
        ({"report": {"container": {"image": "a"}}}, "report: container: the Python that submits"),
        ({"default": {"container": {"image": "a", "command": []}}}, "no word: wanted the word"),
        ({"default": {"container": {"image": "a", "command": ["IMAGE"]}}}, "behind what starts"),
    ],
)
def test_faults_of_resources_are_found_before_submission(content: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(words)):
        ResourcesConfig.model_validate(content)


def test_options_that_contradict_nothing_stay() -> None:
    extra = {"mem-per-cpu": "2G", "exclusive": True, "gres": "nvme:1"}
    config = ResourcesConfig.model_validate({"default": {"gpus": 2, "extra": extra}})
    assert config.of("pretrain").extra == extra
    off = {"default": {"mem_gb": 4, "extra": {"exclusive": False}}}
    assert ResourcesConfig.model_validate(off).of("report").mem_gb == 4


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("/shared/whitening.sif", "/shared/whitening.sif"),
        ("images/root", f"{Path.cwd()}/images/root"),
        ("a b.sif", f"{Path.cwd()}/a b.sif"),
        ("docker://registry/whitening:cuda", None),
        ("localhost/whitening:cpu", None),
    ],
)
def test_an_image_is_a_path_or_a_name_with_a_colon(image: str, path: str | None) -> None:
    container = Container(image=image, command=("podman", "run", "IMAGE", "python3", "-P"))
    assert container.path == (Path(path) if path else None)
    assert container.python == ("podman", "run", path or image, "python3", "-P")
    assert Container(image=image).python[:3] == ("apptainer", "exec", "--nv")


def test_a_kind_of_stage_leaves_the_container_of_the_default() -> None:
    config = ResourcesConfig.model_validate(
        {"default": {"container": {"image": "a.sif"}}, "convert": {"container": None}}
    )
    assert config.of("convert").container is None and config.of("probe").container is not None
