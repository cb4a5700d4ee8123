import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from core.process import wrapped

REPORT = """
import os, resource
print(resource.getrlimit(resource.RLIMIT_CORE), os.sched_getscheduler(0), oct(os.umask(0)))
"""


def run(script: str, **options: bool) -> str:
    done = subprocess.run(
        wrapped([sys.executable, "-c", script], **options),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_command_leaves_no_core_dump_and_nothing_readable():
    assert run(REPORT) == f"(0, 0) {os.SCHED_OTHER} 0o77\n"


def test_an_idle_command_runs_at_idle_priority():
    assert run(REPORT, idle_priority=True) == f"(0, 0) {os.SCHED_IDLE} 0o77\n"


def test_the_starting_process_itself_is_unchanged():
    before = resource.getrlimit(resource.RLIMIT_CORE), os.sched_getscheduler(0)
    run(REPORT, idle_priority=True)
    assert (resource.getrlimit(resource.RLIMIT_CORE), os.sched_getscheduler(0)) == before


def test_arguments_pass_unchanged_even_those_that_look_like_options():
    command = wrapped([sys.executable, "-c", "import sys; print(sys.argv[1:])", "--idle", "--", ""])
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "['--idle', '--', '']\n"


def test_the_command_dies_when_its_parent_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    child = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    start = (
        "import subprocess, sys; from core.process import wrapped; "
        f"subprocess.run(wrapped([sys.executable, '-c', {child!r}]))"
    )
    parent = subprocess.Popen([sys.executable, "-c", start])
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pid = int(pid_file.read_text())
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_command_does_not_start_when_its_parent_is_no_longer_the_one_that_asked():
    """As when the parent died before the kernel was told: somebody else inherited the child."""
    command = wrapped([sys.executable, "-c", "print('started')"])
    between = f"import subprocess; raise SystemExit(subprocess.run({command!r}).returncode)"
    done = subprocess.run([sys.executable, "-c", between], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_that_keeps_freed_memory_gets_large_blocks_without_new_pages():
    script = """
import resource
from core.process import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages(), keep_freed_memory(), pages(), pages())
"""
    fresh, kept, _, again = run(script).split()
    assert kept == "True"
    assert int(fresh) > 1000 > 100 > int(again)
