"""The chart migrates before an upgrade changes anything, in a pod like that of `init`."""

import copy

import pytest
from chart_rig import CASES, hook, named, of_kind

from core.settings import PREFIX


@pytest.mark.parametrize("case", CASES)
def test_a_job_before_each_upgrade_migrates_and_is_else_that_of_init(case):
    (job,) = [one for one in of_kind(case, "Job") if hook(one)]
    assert job["metadata"]["name"].endswith("-migrate")
    annotations = job["metadata"]["annotations"]
    assert annotations == {
        "helm.sh/hook": "pre-upgrade",
        "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
    }
    (init,) = [one for one in of_kind(case, "Job") if not hook(one)]
    wanted = copy.deepcopy(init["spec"]["template"])
    wanted["spec"]["restartPolicy"] = "Never"
    wanted["spec"]["containers"][0]["args"] = ["migrate"]
    assert job["spec"]["template"] == wanted
    assert job["spec"]["backoffLimit"] == 1
    said = {env["name"] for env in wanted["spec"]["containers"][0]["env"]}
    assert {f"{PREFIX}STATE_DIR", f"{PREFIX}REDIS_URL"} <= said


def test_it_needs_nothing_that_the_release_before_lacks():
    """A hook runs before the rest is changed: account, claim and network rule are the old ones."""
    job, init = named("full", "Job", "-migrate"), named("full", "NetworkPolicy", "-init")
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert init["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
