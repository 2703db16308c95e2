from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from fake_workers import SUCCEEDS, is_running, wait_until_gone, worker

from layerstream_compare.case import Case
from layerstream_compare.measurement import Measurement
from layerstream_compare.runners.isolate import STEADY_MALLOC, run_isolated


def outcome(case: Case, command: tuple[str, ...]) -> Measurement:
    *_, last = run_isolated(case, worker_command=command)
    assert last.kind == "finished"
    assert last.measurement is not None
    return last.measurement


def test_a_case_yields_phases_and_tokens_and_finishes_with_a_measurement(case):
    events = list(run_isolated(case, worker_command=worker(SUCCEEDS)))
    assert [event.kind for event in events] == ["started", "phase", "token", "finished"]
    assert events[1].data == {"phase": "load"}
    assert events[2].data == {"index": 0, "id": 1, "text": "a"}
    measurement = events[-1].measurement
    assert measurement.status == "ok"
    assert measurement.case == case
    assert measurement.isolation == "process"
    assert measurement.token_ids == (1, 2, 3)
    assert measurement.memory.phases[0].phase == "load"


def test_a_heartbeat_lets_the_consumer_stop_a_silent_worker(case):
    body = 'emit("phase", phase=str(os.getpid())); time.sleep(60)'
    events = run_isolated(case, worker_command=worker(body), heartbeat_s=0.01)
    kinds, pid = [], 0
    for event in events:
        kinds.append(event.kind)
        pid = int(event.data.get("phase", pid))
        if pid and event.kind == "waiting":
            break
    events.close()
    assert [kind for kind in kinds if kind != "waiting"] == ["started", "phase"]
    assert wait_until_gone(pid)


def test_heartbeats_do_not_disturb_a_workers_events(case):
    body = """
emit("phase", phase="load"); time.sleep(0.2)
pipe.write(b'{"kind": "tok'); time.sleep(0.2); pipe.write(b'en", "id": 1}\\n')
emit("result", **RESULT)
"""
    events = list(run_isolated(case, worker_command=worker(body), heartbeat_s=0.02))
    others = [event for event in events if event.kind != "waiting"]
    assert [event.kind for event in others] == ["started", "phase", "token", "finished"]
    assert len(others) < len(events)
    assert others[-1].measurement.status == "ok"


def test_without_heartbeats_only_the_workers_events_are_yielded(case):
    body = 'time.sleep(0.7); emit("result", **RESULT)'
    assert [event.kind for event in run_isolated(case, worker_command=worker(body))] == [
        "started",
        "finished",
    ]


def test_the_worker_gets_the_whole_case_even_if_the_prompt_is_larger_than_a_pipe(case):
    body = 'emit("result", **{**RESULT, "text": str(len(case["prompt"]))})'
    assert outcome(case.with_changes(prompt="x" * 1_000_000), worker(body)).text == "1000000"


def test_a_worker_that_never_reads_a_long_prompt_does_not_block_the_parent(case):
    silent = (sys.executable, "-c", "pass")
    assert (
        outcome(case.with_changes(prompt="x" * 1_000_000), silent).reason
        == "the worker ended without a result"
    )


def test_the_worker_leads_its_session_with_steady_malloc_and_the_cases_threads(case):
    body = """
names = ["MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS"]
facts = {"env": [os.environ.get(name) for name in names], "leads": os.getsid(0) == os.getpid()}
emit("result", **{**RESULT, "facts": facts})
"""
    facts = outcome(case.with_changes(threads=3), worker(body)).facts
    assert facts == {"env": [*STEADY_MALLOC.values(), "false", "3"], "leads": True}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("sys.exit(3)", "exit status 3"),
        ("raise RuntimeError('no such kernel')", "exit status 1: RuntimeError: no such kernel"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed with signal 11 (SIGSEGV)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed (probably out of memory)"),
        ("pass", "the worker ended without a result"),
        ("pipe.close(); sys.exit(4)", "exit status 4"),
        ("print('hello', file=sys.stdout)", "the worker ended without a result"),
        ("pipe.write(b'hello\\n')", "the worker wrote a line that is not JSON: 'hello'"),
        ("pipe.write(b'\\xff\\xfe\\n')", "the worker wrote a line that is not JSON: '��'"),
        (
            "pipe.write(b'[' * 100000 + b'\\n')",
            f"the worker wrote a line that is not JSON: '{'[' * 120}' and 99880 more bytes",
        ),
        ("pipe.write(b'[1]\\n')", "the worker wrote a message of unknown kind: '[1]'"),
        ("emit('surprise')", 'the worker wrote a message of unknown kind: \'{"kind": "surprise"}\''),
        ('pipe.write(b\'{"kind": "tok\')', "the worker ended, in the middle of a line"),
        (
            "pipe.write(b'{\"kind'); os.kill(os.getpid(), 11)",
            "crashed with signal 11 (SIGSEGV), in the middle of a line",
        ),
        ("emit('result', nonsense=1)", "the worker's result does not fit the schema: TypeError"),
        ("emit('result', memory={'phases': []})", "the worker's result does not fit the schema: TypeError"),
        ("emit('failed', reason='the model\\nis odd')", "the model is odd"),
    ],
)
def test_every_misbehaving_worker_becomes_a_failed_measurement(case, body, reason):
    measurement = outcome(case, worker(body))
    assert measurement.status == "failed"
    assert measurement.reason.startswith(reason)
    assert "\n" not in measurement.reason


def test_a_program_that_cannot_be_started_is_a_failed_measurement(case):
    assert outcome(case, ("/no/such/program",)).reason.startswith("the worker cannot be started")


def test_an_unavailable_variant_keeps_its_reason(case):
    measurement = outcome(case, worker("emit('unavailable', reason='needs a GPU')"))
    assert (measurement.status, measurement.reason) == ("unavailable", "needs a GPU")


@pytest.mark.parametrize(
    "body", ["time.sleep(60)", "pipe.close(); time.sleep(60)", "while True: emit('phase', phase='load')"]
)
def test_a_worker_over_its_time_limit_is_killed_and_the_reason_says_so(case, body):
    measurement = outcome(case.with_changes(time_limit_s=0.5), worker(body))
    assert (measurement.status, measurement.reason) == ("failed", "time limit of 0.5 s")


def test_the_last_twenty_lines_of_standard_error_and_output_are_kept(case):
    body = "print('first', flush=True)\nfor i in range(50): print('line', i, file=sys.stderr)\nsys.exit(1)"
    lines = outcome(case, worker(body)).stderr_tail.splitlines()
    assert lines == [f"line {i}" for i in range(30, 50)]


def test_a_complete_result_counts_even_if_the_worker_then_crashes(case):
    measurement = outcome(case, worker(SUCCEEDS + "os.kill(os.getpid(), signal.SIGSEGV)"))
    assert measurement.status == "ok"
    assert measurement.facts["worker_exit"] == "crashed with signal 11 (SIGSEGV)"


def test_nothing_is_read_after_the_result(case):
    assert outcome(case, worker(SUCCEEDS + "pipe.write(b'garbage')")).status == "ok"


@pytest.mark.parametrize("ending", ['emit("result", **RESULT)', "sys.exit(1)", "time.sleep(60)"])
def test_children_of_the_worker_end_with_it(case, ending, tmp_path):
    note = tmp_path / "pid"
    # the child keeps the pipe open: the parent can only notice the leader's exit
    body = f"""
child = subprocess.Popen(["sleep", "100"], pass_fds=(fd,))
open({str(note)!r}, "w").write(str(child.pid))
{ending}
"""
    outcome(case.with_changes(time_limit_s=3), worker(body))
    assert wait_until_gone(int(note.read_text()))


def test_everything_written_before_the_exit_is_read_even_if_a_child_keeps_the_pipe_open(case):
    body = (
        'subprocess.Popen(["sleep", "100"], pass_fds=(fd,))\n'
        + 'emit("token", index=0, id=1, text="a")\n' * 100
        + "os._exit(1)"
    )
    events = list(run_isolated(case, worker_command=worker(body)))
    assert [event.kind for event in events].count("token") == 100
    assert events[-1].measurement.reason == "exit status 1"


def test_closing_the_iterator_ends_the_worker_and_leaves_no_zombie(case):
    events = run_isolated(case, worker_command=worker('emit("token", pid=os.getpid())\ntime.sleep(60)'))
    pid = next(event.data["pid"] for event in events if event.kind == "token")
    assert is_running(pid)
    events.close()
    assert not Path(f"/proc/{pid}").exists()


def test_an_interrupt_in_the_parent_ends_the_worker(case):
    body = 'emit("token", pid=os.getpid())\ntime.sleep(60)'
    program = f"""
import sys, os
from layerstream_compare.case import Case
from layerstream_compare.runners.isolate import run_isolated
case = Case.from_json({case.to_json()!r})
for event in run_isolated(case, worker_command={worker(body)!r}):
    if event.kind == "token":
        print(event.data["pid"], flush=True)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with parent:
        pid = int(parent.stdout.readline())
        parent.send_signal(2)
        parent.wait(timeout=20)
    assert wait_until_gone(pid)


def test_a_worker_exits_when_its_parent_is_killed(case):
    body = "from layerstream_compare.worker.parent_watch import exit_with_reader\nexit_with_reader(fd)\n"
    body += 'emit("token", pid=os.getpid())\ntime.sleep(60)'
    program = f"""
from layerstream_compare.case import Case
from layerstream_compare.runners.isolate import run_isolated
for event in run_isolated(Case.from_json({case.to_json()!r}), worker_command={worker(body)!r}):
    if event.kind == "token":
        print(event.data["pid"], flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    assert wait_until_gone(pid)


def test_no_file_descriptor_is_left_open(case):
    list(run_isolated(case, worker_command=worker(SUCCEEDS)))
    before = len(os.listdir("/proc/self/fd"))
    for command in (worker(SUCCEEDS), worker("sys.exit(1)"), ("/no/such/program",)):
        list(run_isolated(case, worker_command=command))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_the_parent_uses_less_than_a_hundredth_of_a_core_while_a_worker_sleeps(case, has_pidfd, monkeypatch):
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    slept_s = 3
    events = run_isolated(
        case,
        worker_command=worker(
            f'emit("phase", phase="load")\ntime.sleep({slept_s})\nemit("result", **RESULT)'
        ),
    )
    assert [next(events).kind for _ in range(2)] == ["started", "phase"]
    before = resource.getrusage(resource.RUSAGE_SELF)
    finished = next(events)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert finished.measurement.status == "ok"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.01 * slept_s
