"""A stage for tests: writes, fails, refuses, or waits until it is told to stop."""

import sys
import time

from learning.training.stage import Interrupted, NotEnoughData, Stage, run


def main(stage: Stage) -> dict:
    does = stage.inputs["does"]
    if does == "fail":
        sys.exit("no such luck")
    if does == "refuse":
        raise NotEnoughData("too little")
    resumed = stage.checkpoint.exists()
    stage.checkpoint.write_text("here")
    (stage.folder / "checkpoint-2").mkdir(exist_ok=True)  # where what it points to lies
    stage.progress(0.5, "half way")
    deadline = time.monotonic() + 60
    while does == "wait" and not resumed:
        assert time.monotonic() < deadline
        if stage.stopping:
            raise Interrupted("stopped")
        time.sleep(0.01)
    time.sleep(0.3)  # so that the progress is seen
    (stage.partial / "result").write_text("resumed" if resumed else str(time.time_ns()))
    return {}


if __name__ == "__main__":
    run(main)
