"""Limits of a site, from what scontrol and sinfo say, without any SLURM."""

from dataclasses import replace

import pytest

from pipeline.config.schema import Resources
from pipeline.executors.slurm.arrays import job_groups
from pipeline.executors.slurm.limits import (
    SiteLimits,
    beyond_partition,
    enough_up,
    fitting,
    nodes_of,
    parse_config,
    parse_nodes,
    parse_submit_limit,
    read_limits,
)
from pipeline.executors.slurm.queue import SlurmError
from tests.pipeline.executors.slurm.made_up import NOTHING, stages_of

SINFO = """main*|infinite|2|4|8000|(null)|idle
gpu|1-00:00:00|4|64|512000|gpu:a100:8(S:0-1),nvme:1|mixed
gpu|1-00:00:00|1|64|512000|gpu:a100:4|down*
short|5:00|1|4|8000|(null)|drained
"""


def faults(partition: str, **resources: object) -> dict[str, str]:
    group = job_groups(stages_of(("a",), ()), NOTHING, {})[0]
    group = replace(group, resources=Resources.model_validate(resources))
    return beyond_partition(group, nodes_of(parse_nodes(SINFO), partition))


def test_the_config_of_the_controller() -> None:
    text = (
        "AccountingStorageType   = accounting_storage/slurmdbd\nMaxArraySize            = 1001\n"
        "MaxJobCount             = 10000\nSchedulerParameters     = x=1,max_array_tasks=50,y\n"
    )
    assert parse_config(text) == {
        "accounting": 1, "MaxArraySize": 1001, "MaxJobCount": 10000, "max_array_tasks": 50,
    }  # fmt: skip


def test_nodes_of_sinfo() -> None:
    rows = parse_nodes(SINFO)
    assert [row.gpus for row in rows] == [0, 8, 4, 0]
    assert [row.max_s for row in rows] == [None, 86400, 86400, 300]
    assert [row.is_up for row in rows] == [True, True, False, False]
    assert [row.partition for row in nodes_of(rows, "")] == ["main"]
    assert len(nodes_of(rows, "gpu,short")) == 3


def test_what_no_node_has_is_named_by_its_key() -> None:
    assert faults("") == faults("gpu", gpus=8, nodes=5, mem_gb=500, timeout_min=1440) == {}
    assert faults("", mem_gb=8) == {"mem_gb": "8, but no node of main has more than 7.8125"}
    assert list(faults("", cpus_per_gpu=5, gpus=1, nodes=3)) == ["cpus_per_gpu", "gpus", "nodes"]
    assert faults("short") == {"timeout_min": "60, but the limit of short is 5"}
    assert faults("short", qos="long") == {}  # a QOS may allow more than its partition
    assert faults("nowhere", mem_gb=999) == {}  # sbatch names the partition


def test_nodes_that_are_down_are_waited_for() -> None:
    group = job_groups(stages_of(("a",), ()), NOTHING, {})[0]
    rows = parse_nodes(SINFO)
    short = replace(group, resources=Resources(timeout_min=5))
    assert enough_up(short, nodes_of(rows, "gpu")) and not enough_up(short, nodes_of(rows, "short"))
    large = replace(group, resources=Resources(mem_gb=16))  # only small ones are up
    down = [replace(row, is_up=False) if row.mem_mb > 8000 else row for row in rows]
    assert enough_up(large, rows) and not enough_up(large, down)


def test_stages_fill_the_room_beside_the_report() -> None:
    stages = stages_of(("a", "b"))
    assert fitting(stages, SiteLimits()) == fitting(stages, SiteLimits(room=9)) == stages
    assert fitting(stages, SiteLimits(room=8)) == stages[:7]
    assert fitting(stages, SiteLimits(room=2)) == stages[:1]
    with pytest.raises(SlurmError, match="MaxJobCount=5 leaves 1 jobs; run again when"):
        fitting(stages, SiteLimits(room=1, room_is="MaxJobCount=5"))


def test_limits_are_what_is_left_of_them(fake) -> None:
    fake.say("scontrol", "MaxArraySize = 5\nMaxJobCount = 8\n")
    assert read_limits() == SiteLimits(5, 7, "MaxJobCount=8")
    fake.say("scontrol", "")
    assert read_limits() == SiteLimits()


ASSOC = "lab|high|100|\nother|normal|7|3\n"
QOS = "normal||\nhigh|20|\nlow|5|4\n"


@pytest.mark.parametrize(("resources", "environment", "limit"), [
    ({}, {}, 20),
    ({"account": "lab"}, {}, 20),
    ({"account": "lab", "qos": "low"}, {}, 4),
    ({"account": "lab", "qos": "normal"}, {}, 100),
    ({"qos": "normal"}, {"SBATCH_ACCOUNT": "other"}, 3),
    ({"account": "stranger"}, {"SBATCH_QOS": "normal"}, None),
])  # fmt: skip
def test_submit_limits_of_accounts_and_qos(
    resources: dict, environment: dict, limit: int | None
) -> None:
    asked = [Resources.model_validate(resources)]
    assert parse_submit_limit(ASSOC, QOS, asked, environment) == limit
    assert parse_submit_limit("", "", asked, environment) is None
