"""What a line of a log holds, and what never gets into one."""

import asyncio
import io
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import orjson
import pydantic
import pytest

from core import logs
from core.errors import BadRequest, EngineError

SECRET = "the-marker-of-this-test"
log = logging.getLogger("serving.example")


class Written(io.StringIO):
    def set_up(self, process: str, **options) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", self)
            logs.set_up(process, **options)

    def lines(self) -> list[dict]:
        return [json.loads(raw) for raw in self.getvalue().splitlines()]


@pytest.fixture
def written() -> Iterator[Written]:
    """Lines as the gateway would write them; logging is put back as it was."""
    root, out = logging.getLogger(), Written()
    before, level, hook = root.handlers[:], root.level, sys.excepthook
    out.set_up("gateway", level="info", form="auto", replica="r0")
    yield out
    root.handlers[:], sys.excepthook = before, hook
    root.setLevel(level)
    for name in ("core", "deploy", "feedback", "learning", "serving"):
        logging.getLogger(name).setLevel(logging.NOTSET)


class Asked(pydantic.BaseModel):
    number: int


def raised_by_a_body() -> Exception:
    with pytest.raises(pydantic.ValidationError, match=SECRET) as caught:
        Asked.model_validate({"number": SECRET})
    return caught.value


def test_a_line_has_its_fields_and_the_ids_of_the_process_and_of_the_block(written):
    with logs.bound(request_id="req_1"), logs.bound(version="v0002"):
        log.warning("asked %s times", 3, extra={"status": 503, "cookies": SECRET})
    log.info("after it")
    first, second = written.lines()
    assert {name: first[name] for name in ("level", "process", "logger", "message")} == {
        "level": "warning",
        "process": "gateway",
        "logger": "serving.example",
        "message": "asked 3 times",
    }
    assert first["request_id"] == "req_1"
    assert (first["version"], first["replica"], first["status"]) == ("v0002", "r0", 503)
    assert first["time"].endswith("+00:00")
    assert "request_id" not in second
    assert SECRET not in written.getvalue()


async def test_tasks_begun_in_a_block_carry_its_ids_and_others_do_not(written):
    async def work() -> None:
        await asyncio.sleep(0)
        log.info("working")

    with logs.bound(request_id="req_1"):
        first = asyncio.create_task(work())
    second = asyncio.create_task(work())
    await asyncio.gather(first, second)
    assert [one.get("request_id") for one in written.lines()] == ["req_1", None]


@pytest.mark.parametrize(
    "error",
    [
        raised_by_a_body(),
        KeyError(SECRET),
        ValueError(SECRET),
        RuntimeError(SECRET),
        BadRequest(f"the field `{SECRET}` is unknown"),
        ExceptionGroup(SECRET, [ValueError(SECRET)]),
        orjson.JSONDecodeError("at", SECRET, 3),
        OSError(2, "No such file or directory", SECRET),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_traceback_says_where_and_what_type_but_not_what_was_in_the_request(written, error):
    try:
        try:
            raise error
        except BaseException as cause:
            raise EngineError("the engine is gone") from cause
    except EngineError:
        log.exception("it failed")
    (said,) = written.lines()
    assert SECRET not in written.getvalue()
    trace = said["exception"]
    assert trace.startswith("EngineError: the engine is gone")
    assert type(error).__name__ in trace
    assert "tests/core/test_logs.py:" in trace


def test_a_process_that_handles_no_request_says_what_errors_of_torch_say(written):
    written.set_up("stage", level="info", form="json", says_maths=True)
    try:
        raise RuntimeError("size 3 must match size 4")
    except RuntimeError:
        log.exception("ended")
    log.error("ended too", exc_info=ValueError(SECRET))
    log.error("ended too", exc_info=FloatingPointError("the norm is nan"))
    first, second, third = written.lines()
    assert first["exception"].startswith("RuntimeError: size 3 must match size 4")
    assert second["exception"].startswith("ValueError (what it says is withheld)")
    assert third["exception"].startswith("FloatingPointError: the norm is nan")


def test_arguments_of_a_foreign_logger_are_left_out_where_an_exception_goes_with_them(written):
    foreign = logging.getLogger("celery.app.example")
    said = {"name": "ingest", "exc": SECRET}
    foreign.error("Task %(name)s raised: %(exc)s", said, exc_info=ValueError(SECRET))
    foreign.warning("a word of %s", "theirs")
    assert [one["message"] for one in written.lines()] == [
        "Task %(name)s raised: %(exc)s",
        "a word of theirs",
    ]
    assert SECRET not in written.getvalue()


async def test_a_task_that_nobody_waited_for_tells_its_type_alone(written):
    async def fail() -> None:
        raise ValueError(SECRET)

    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    context = {"message": "Task exception was never retrieved", "exception": task.exception()}
    asyncio.get_running_loop().call_exception_handler({**context, "future": task})
    (said,) = written.lines()
    assert said["message"].startswith("Task exception was never retrieved")
    assert "ValueError" in said["exception"]
    assert SECRET not in written.getvalue()


@pytest.mark.parametrize(
    "secret",
    [
        "redis://user:hunter2@host:6379/0",
        "redis+socket://:hunter2@/run/redis.sock",
        "Authorization: Bearer hunter2",
        "il-hunter2hunter2hunter2hunter2",
        "ilf-hunter2hunter2hunter2hunter2",
        "whsec_hunter2hunter2hunter2hunter2",
        "hunter2@example.org",
    ],
)
def test_passwords_keys_tokens_and_addresses_are_struck_out_of_what_we_say(written, secret):
    log.warning("it said %s, and no more", secret)
    (said,) = written.lines()
    assert "hunter2" not in said["message"]
    assert said["message"].startswith("it said ")
    assert said["message"].endswith("and no more")


def test_names_of_models_and_versions_are_not_taken_for_secrets(written):
    log.info("instructloop@v0003 from http://engine:8000/v1 by engine-0, run-20261122-1")
    assert written.lines()[0]["message"] == (
        "instructloop@v0003 from http://engine:8000/v1 by engine-0, run-20261122-1"
    )


def test_a_line_that_cannot_be_made_says_so_and_nothing_of_its_arguments(written):
    handlers = logging.getLogger().handlers  # pytest's own would raise
    ours = next(one for one in handlers if type(one).__module__ == "core.logs")
    ours.handle(logging.LogRecord("serving.example", logging.INFO, "", 1, "%d", (SECRET,), None))
    assert written.lines()[0]["message"] == "a line of serving.example was lost"
    assert SECRET not in written.getvalue()


def test_at_debug_only_our_own_loggers_say_more(written):
    written.set_up("gateway", level="debug", form="json")
    logging.getLogger("httpcore.http11").debug("send_request_body %s", SECRET)
    log.debug("ours")
    assert [one["message"] for one in written.lines()] == ["ours"]
    written.set_up("gateway", level="error", form="json")
    log.warning("too little")
    logging.getLogger("uvicorn.error").warning("too little")
    assert len(written.lines()) == 1


def test_a_file_gets_lines_and_people_get_text(written, tmp_path):
    logs.set_up("up", level="info", form="auto", path=tmp_path / "up.log")
    log.info("ready")
    logs.set_up("up", level="info", form="text", path=tmp_path / "text.log")
    with logs.bound(run="run-1"):
        log.error("failed", exc_info=OSError(28, "No space left on device"))
    assert json.loads((tmp_path / "up.log").read_text())["message"] == "ready"
    text = (tmp_path / "text.log").read_text()
    assert "error up failed [run=run-1]\nOSError: No space left on device" in text


def test_what_a_line_says_to_people_is_its_message_and_error():
    raw = json.dumps({"message": "ended by ValueError", "exception": "ValueError: x\n  a.py:1"})
    assert logs.said_in(raw) == "ended by ValueError: ValueError: x"
    assert logs.said_in("  plain words \n") == "plain words"
    assert logs.said_in('{"other": 1}') == '{"other": 1}'
    line = logs.line(logging.INFO, "attempt 1 begins", run="run-1", stage="policy")
    assert logs.said_in(line) == "attempt 1 begins"
    shown = logs.for_people(f"{line}\nplain\n")
    assert "attempt 1 begins [run=run-1 stage=policy]\nplain\n" in shown


def test_what_nobody_caught_is_a_line_too_in_every_thread():
    program = textwrap.dedent(f"""
        import threading, warnings
        from core import logs
        logs.set_up("worker", level="info", form="json")
        warnings.warn("{SECRET}")
        thread = threading.Thread(target=lambda: {{}}["{SECRET}"])
        thread.start()
        thread.join()
        raise ValueError("{SECRET}")
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    said = [json.loads(raw) for raw in done.stderr.splitlines()]
    assert said[0]["message"].startswith("UserWarning at ")
    assert [one["message"] for one in said[1:]] == ["ended by KeyError", "ended by ValueError"]
    assert SECRET not in done.stderr


def test_a_full_disk_stops_nobody_who_logs():
    code = """
    import logging
    from core import logs
    logs.set_up("gateway", level="info", form="json")
    for _ in range(300):
        logging.getLogger("serving.example").warning("still here")
    print("done")
    """
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
        )
    assert done.stdout == "done\n"
