"""The order of a swap, and what happens when any step of it fails, against an engine double."""

import asyncio
from pathlib import Path

import pytest

from core.errors import CorruptVersion, EngineError, NotFinite
from serving import swap as swaps
from serving.swap import Loadable, SwapFailed, differing_parameters, swap

OLD = Loadable("v0000", Path("v0000"), {"layer.weight": "old"})
NEW = Loadable("v0001", Path("v0001"), {"layer.weight": "new"})
CHECKSUMS = {"v0000": "old", "v0001": "new"}
STEPS = (
    "pause",
    "install",
    "reset_prefix_cache",
    "set_weight_version",
    "resume",
    "probe",
)
RELOADED = ("pause", "reload", "checksums", *STEPS[2:])


class EngineDouble:
    """Does what vLLM does: a failed load leaves no weights; a stale cache stays until reset."""

    def __init__(
        self,
        fail_at: str = "",
        times: int = 1,
        refuse: bool = False,
        stages: bool = True,
        error: type[EngineError] = EngineError,
        hang_at: str = "",
    ) -> None:
        self.error, self.hang_at, self.staged_wrong = error, hang_at, 0
        self.stages = stages
        self.staged = ""
        self.lost = ""
        """What installing does in truth, if not what it should."""
        self.weights: str | None = "v0000"
        self.version = "v0000"
        self.cached_from: str | None = "v0000"
        self.held = self.paused = False
        self.calls: list[str] = []
        self.fail_at, self.times, self.refuse = fail_at, times, refuse

    async def _step(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fail_at and self.times > 0:
            self.times -= 1
            raise self.error(f"{name} failed")
        if name == self.hang_at:
            await asyncio.Event().wait()

    async def stage(self, folder: Path) -> dict[str, str] | None:
        if self.refuse:
            raise CorruptVersion("NaN in layer.weight")
        await self._step("stage")
        self.staged = folder.name
        if self.staged_wrong:
            self.staged_wrong -= 1
            return {"layer.weight": "half"}
        return {"layer.weight": CHECKSUMS[folder.name]} if self.stages else None

    async def install(self) -> None:
        assert self.paused
        self.weights = None
        await self._step("install")
        self.weights = self.lost or self.staged

    async def attest(self) -> dict[str, str]:
        assert not self.paused
        await self._step("attest")
        return {"layer.weight": CHECKSUMS[self.weights]}

    async def hold(self) -> None:
        self.held = True
        await self._step("hold")

    async def drain(self, seconds: float) -> int:
        await self._step("drain")
        return 0

    async def pause(self) -> None:
        await self._step("pause")
        self.paused = True

    async def reload(self, folder: Path) -> None:
        assert self.paused
        self.weights = None
        await self._step("reload")
        self.weights = folder.name

    async def checksums(self) -> dict[str, str]:
        await self._step("checksums")
        return {"layer.weight": CHECKSUMS[self.weights]}

    async def reset_prefix_cache(self, *, keep: bool = False) -> None:
        await self._step("reset_prefix_cache")
        self.cached_from = None

    async def set_weight_version(self, version: str) -> None:
        assert self.paused
        await self._step("set_weight_version")
        self.version = version

    async def resume(self) -> None:
        await self._step("resume")
        self.paused = False

    async def probe(self) -> object:
        assert not self.paused
        await self._step("probe")
        assert self.weights is not None
        return None

    async def admit(self, version: str) -> None:
        await self._step("admit")
        assert version == self.version
        assert self.weights in (version, self.lost)
        assert self.cached_from in (None, version)
        self.held = False


async def test_the_steps_come_in_the_safe_order():
    engine = EngineDouble()
    result = await swap(engine, new=NEW, old=OLD, drain_seconds=0.1)
    assert engine.calls == ["stage", "hold", "drain", *STEPS, "admit", "attest"]
    assert result.checksums == NEW.checksums
    assert 0 <= result.pause_seconds <= result.held_seconds


async def test_an_engine_that_cannot_hold_two_sets_is_loaded_and_compared_in_the_pause():
    engine = EngineDouble(stages=False)
    result = await swap(engine, new=NEW, old=OLD, drain_seconds=0.1)
    assert engine.calls == ["stage", "hold", "drain", *RELOADED, "admit"]
    assert result.checksums == NEW.checksums


@pytest.mark.parametrize("step", ["stage", "hold", "drain", *STEPS, "admit", "attest"])
async def test_a_failure_at_any_step_puts_the_old_weights_back_and_admits_them(step):
    engine = EngineDouble(fail_at=step)
    with pytest.raises(SwapFailed, match=step) as failure:
        await swap(engine, new=NEW, old=OLD, drain_seconds=0.1)
    assert failure.value.restored
    assert (engine.weights, engine.version, engine.held, engine.paused) == (
        "v0000",
        "v0000",
        False,
        False,
    )


@pytest.mark.parametrize("step", ["reload", "checksums"])
async def test_a_failure_at_a_step_of_reloading_puts_the_old_weights_back(step):
    engine = EngineDouble(fail_at=step, stages=False)
    with pytest.raises(SwapFailed, match=step) as failure:
        await swap(engine, new=NEW, old=OLD, drain_seconds=0.1)
    assert failure.value.restored
    assert (engine.weights, engine.held) == ("v0000", False)


async def test_weights_that_are_not_those_that_were_staged_do_not_stay_live():
    engine = EngineDouble()
    engine.lost = "v0000"
    with pytest.raises(SwapFailed, match="not those that were staged") as failure:
        await swap(engine, new=NEW, old=OLD, drain_seconds=0.1)
    assert failure.value.restored
    assert (engine.weights, engine.version, engine.held) == ("v0000", "v0000", False)


@pytest.mark.parametrize("step", ["hold", *STEPS, "admit", "attest"])
async def test_a_failure_of_the_engine_does_not_blame_the_version(step):
    engine = EngineDouble(fail_at=step, times=2)
    with pytest.raises(SwapFailed) as failure:
        await swap(engine, new=NEW, old=OLD, drain_seconds=0.1)
    assert not failure.value.blames_version
    assert failure.value.restored  # at the second try
    assert (engine.weights, engine.held) == ("v0000", False)


async def test_nan_blames_the_version_and_the_engine_has_to_start_again():
    engine = EngineDouble(fail_at="probe", error=NotFinite)
    with pytest.raises(SwapFailed) as failure:
        await swap(engine, new=NEW, old=OLD, drain_seconds=0.1)
    assert failure.value.blames_version
    assert not failure.value.restored  # its cache stays spoilt
    assert engine.held


async def test_an_engine_that_hangs_in_the_pause_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(swaps, "EXCHANGE_SECONDS", 0.05)
    engine = EngineDouble(hang_at="install")
    with pytest.raises(SwapFailed, match="took over") as failure:
        await swap(engine, new=NEW, old=OLD, drain_seconds=0.0)
    assert (failure.value.restored, failure.value.blames_version) == (True, False)
    assert (engine.weights, engine.held) == ("v0000", False)


async def test_what_was_staged_wrong_once_is_staged_again():
    engine = EngineDouble()
    engine.staged_wrong = 1
    await swap(engine, new=NEW, old=OLD, drain_seconds=0.0)
    assert engine.calls[:2] == ["stage", "stage"]
    assert (engine.weights, engine.version) == ("v0001", "v0001")


@pytest.mark.parametrize("step", ["pause", "resume", "probe", "reset_prefix_cache"])
async def test_an_engine_that_cannot_be_restored_is_said_to_be_so(step):
    engine = EngineDouble(fail_at=step, times=3)
    with pytest.raises(SwapFailed) as failure:
        await swap(engine, new=NEW, old=OLD, drain_seconds=0.1)
    assert not failure.value.restored
    assert engine.held


async def test_weights_that_are_not_those_of_the_card_are_not_admitted():
    engine = EngineDouble()
    wrong = Loadable("v0001", Path("v0001"), {"layer.weight": "somebody else's"})
    with pytest.raises(SwapFailed, match="1 parameters") as failure:
        await swap(engine, new=wrong, old=OLD, drain_seconds=0.1)
    assert failure.value.blames_version
    assert engine.weights == "v0000"
    assert not engine.held


def test_checksums_of_another_build_are_not_compared():
    assert differing_parameters({"a": "1", "b": "2"}, {"a": "1", "b": "3"}) == 1
    assert differing_parameters({"a.packed": "1"}, {"a": "1"}) == 0
    assert differing_parameters({"a": "1"}, None) == 0


async def test_a_candidate_that_the_engine_refuses_leaves_the_old_one_serving():
    engine = EngineDouble(refuse=True)
    with pytest.raises(SwapFailed, match="NaN") as failure:
        await swap(engine, new=NEW, old=OLD, drain_seconds=0.1)
    assert failure.value.restored
    assert failure.value.blames_version
    assert engine.weights == "v0000"
