"""Faults on one of several devices: the others stop with a reason, nothing hangs, the model stays usable."""

from __future__ import annotations

import _thread
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kit.threads import no_thread_left
from transformers import AutoModelForCausalLM

import layerstream as ls

IDS = torch.arange(1, 13).reshape(2, 6)
MANY = 10_000


@pytest.fixture(autouse=True)
def _ctrl_c_raises_keyboard_interrupt() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def reference(tiny_llama_dir: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()(IDS).logits


@pytest.fixture
def checkpoint(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


@pytest.fixture(params=["min", "4 GiB"], ids=["streamed", "resident"])
def streamed(request: pytest.FixtureRequest, tiny_llama_dir: Path) -> Iterator[ls.StreamedModel]:
    with ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget=request.param) as streamed:
        yield streamed


def assert_usable(streamed: ls.StreamedModel, reference: torch.Tensor) -> None:
    for logits in streamed.run_on_devices(lambda replica: replica.model(IDS).logits):
        assert torch.equal(logits, reference)
    for replica in streamed.replicas:
        assert torch.equal(replica.model(IDS).logits, reference)


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("where", ["outside a forward", "inside a block"])
def test_a_failing_replica_stops_the_other_with_its_error(
    streamed: ls.StreamedModel, reference: torch.Tensor, failing: int, where: str
) -> None:
    stopped: list[BaseException] = []

    def fail(*_: object) -> None:
        raise ValueError("deep inside")

    def work(replica: ls.Replica) -> None:
        if replica.index == failing:
            replica.model(IDS)
            if where == "inside a block":
                handle = replica.model.model.layers[2].mlp.register_forward_pre_hook(fail)
                try:
                    replica.model(IDS)
                finally:
                    handle.remove()
            fail()
        try:
            for _ in range(MANY):
                replica.model(IDS)
        except ls.ReplicaStoppedError as error:
            stopped.append(error)
            raise

    with pytest.raises(ValueError, match="deep inside"):
        streamed.run_on_devices(work)
    assert len(stopped) == 1
    assert isinstance(stopped[0].__cause__, ValueError)
    assert_usable(streamed, reference)


def test_a_read_error_ends_both_works_and_a_repaired_disk_serves_both(
    checkpoint: Path, reference: torch.Tensor
) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[-1]
    whole = shard.read_bytes()
    with ls.load(checkpoint, devices=["cpu", "cpu"], budget="min") as streamed:
        assert_usable(streamed, reference)
        with shard.open("r+b") as file:
            file.truncate(len(whole) // 2)
        with pytest.raises(ls.ReadFailedError):
            streamed.run_on_devices(lambda replica: [replica.model(IDS) for _ in range(3)])
        for _ in range(5):  # no error loses a buffer
            with pytest.raises(ls.ReadFailedError):
                streamed.model(IDS)
        shard.write_bytes(whole)
        assert_usable(streamed, reference)


def test_a_read_error_while_loading_leaves_nothing(checkpoint: Path) -> None:
    with no_thread_left():
        model = ls.load(checkpoint, devices=["cpu", "cpu"], budget="min")
        model.close()
    shard = sorted(checkpoint.glob("*.safetensors"))[-1]
    shard.chmod(0o600)
    whole = shard.read_bytes()
    with no_thread_left():
        plan = ls.plan(checkpoint, devices=["cpu", "cpu"], budget="4 GiB")
        assert plan.is_resident
        shard.write_bytes(whole[: len(whole) // 2])
        with pytest.raises((ls.ReadFailedError, ls.ShardCorruptError)):
            ls.load(checkpoint, devices=["cpu", "cpu"], budget="4 GiB")


def test_replicas_with_unequal_numbers_of_sweeps_do_not_wait_for_each_other(
    streamed: ls.StreamedModel, reference: torch.Tensor
) -> None:
    def work(replica: ls.Replica) -> int:
        return sum(torch.equal(replica.model(IDS).logits, reference) for _ in range((7, 0, 2)[replica.index]))

    assert streamed.run_on_devices(work) == [7, 0]
    assert_usable(streamed, reference)


def test_an_idle_replica_causes_no_extra_reads(tiny_llama_dir: Path, reference: torch.Tensor) -> None:
    sweeps = 8
    read = []
    for devices in (["cpu"], ["cpu", "cpu"]):
        with ls.load(tiny_llama_dir, devices=devices, budget="min") as streamed:
            for _ in range(sweeps):
                assert torch.equal(streamed(IDS).logits, reference)
            read.append(streamed.report().bytes_read)
            ahead = streamed.plan.num_slots * max(unit.read_bytes for unit in streamed.plan.units)
    assert abs(read[1] - read[0]) <= 2 * ahead


def test_replicas_used_in_turn_from_one_thread_never_wait_for_each_other(
    streamed: ls.StreamedModel, reference: torch.Tensor
) -> None:
    for _ in range(5):
        for replica in reversed(streamed.replicas):
            assert torch.equal(replica.model(IDS).logits, reference)


def test_close_while_both_replicas_run_ends_them_with_a_clear_error(tiny_llama_dir: Path) -> None:
    with no_thread_left():
        streamed = ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget="min")
        running = threading.Barrier(3)

        def work(replica: ls.Replica) -> None:
            replica.model(IDS)
            running.wait(30)
            for _ in range(MANY):
                replica.model(IDS)

        raised: list[BaseException] = []

        def run() -> None:
            try:
                streamed.run_on_devices(work)
            except BaseException as error:  # noqa: BLE001 - the test checks it
                raised.append(error)

        runner = threading.Thread(target=run)
        runner.start()
        running.wait(30)
        streamed.close()
        runner.join(60)
        assert not runner.is_alive()
        # a computation that loses its weights may end with torch's own error about meta tensors
        assert isinstance(
            raised[0], ls.StreamClosedError | ls.ReplicaStoppedError | RuntimeError | NotImplementedError
        )
    with pytest.raises(ls.StreamClosedError):
        streamed.run_on_devices(lambda replica: replica.model(IDS))
    with pytest.raises(ls.StreamClosedError):
        streamed.replicas[1].model(IDS)
    assert all(parameter.is_meta for replica in streamed.replicas for parameter in replica.model.parameters())


def test_ctrl_c_stops_every_replica(streamed: ls.StreamedModel, reference: torch.Tensor) -> None:
    def work(replica: ls.Replica) -> None:
        replica.model(IDS)
        if replica.index == 0:
            replica.model.model.layers[3].register_forward_pre_hook(lambda *_: _thread.interrupt_main())
        for _ in range(MANY):
            replica.model(IDS)

    with pytest.raises(KeyboardInterrupt):
        streamed.run_on_devices(work)
    streamed.model.model.layers[3]._forward_pre_hooks.popitem()
    assert_usable(streamed, reference)


def test_ctrl_c_stops_a_replica_that_the_calling_thread_waits_for(
    streamed: ls.StreamedModel, reference: torch.Tensor
) -> None:
    def work(replica: ls.Replica) -> None:
        if replica.index == 0:
            return
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        for _ in range(MANY):
            replica.model(IDS)

    with pytest.raises(KeyboardInterrupt):
        streamed.run_on_devices(work)
    assert_usable(streamed, reference)


def test_works_that_wait_for_each_other_outside_forwards_end_after_a_while(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget="min") as streamed:
        done = threading.Event()

        def work(replica: ls.Replica) -> None:
            replica.model(IDS)
            if replica.index == 1:
                assert done.wait(60)
                replica.model(IDS)
                return
            for _ in range(3):
                replica.model(IDS)
            done.set()

        streamed.run_on_devices(work)


def test_a_run_on_devices_inside_another_is_refused(
    streamed: ls.StreamedModel, reference: torch.Tensor
) -> None:
    for index in (0, 1):
        with pytest.raises(ls.StreamError, match="already running"):
            streamed.run_on_devices(
                lambda replica, index=index: replica.index == index and streamed.run_on_devices(print)
            )
    assert_usable(streamed, reference)


def test_a_thread_on_one_device_keeps_its_forward_while_others_run_on_all(
    tiny_llama_dir: Path, reference: torch.Tensor
) -> None:
    begun, done = threading.Event(), threading.Event()
    with ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget="min") as streamed:
        second, found = streamed.replicas[1], []

        def hold() -> torch.Tensor:
            begun.set()
            assert done.wait(60)
            return second.model(IDS).logits

        def serve() -> None:
            with streamed.on_device(second):
                found.extend(result.value for result in second.group.run([hold]))

        thread = threading.Thread(target=serve)
        thread.start()
        assert begun.wait(60)
        stream = streamed._controls[1]._parts.stream
        assert stream is not None
        assert streamed.run_on_devices(lambda replica: replica.index) == [0, 1]
        assert stream.is_in_forward and stream.is_expected
        done.set()
        thread.join()
        assert (stream.is_in_forward, stream.is_expected) == (False, False)
        assert torch.equal(found[0], reference)
        assert_usable(streamed, reference)


def test_the_report_of_two_replicas_counts_reads_once_and_the_busiest_ones_sweeps(
    tiny_llama_dir: Path,
) -> None:
    with ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget="min") as streamed:
        streamed.run_on_devices(lambda replica: [replica.model(IDS) for _ in range(3 + replica.index)])
        report = streamed.report()
        assert (report.sweeps, report.device) == (4, "cpu, cpu")
        assert 0 < report.wait_s + report.compute_s <= report.elapsed_s * 1.001
        assert {span.replica for span in streamed.timeline.spans()} == {0, 1}
        streamed.reset_report()
        assert (streamed.report().sweeps, streamed.report().elapsed_s) == (0, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": []}, "takes a list of devices"),
        ({"devices": "cpu"}, "takes a list of devices"),
        ({"devices": ["cpu"], "device": "cpu"}, "both given"),
        ({"devices": ["cpu", "cpu"], "budget": "10 MiB"}, "on cpu, shared by 2 replicas, cannot hold"),
        ({"devices": ["cpu", "nonsense"]}, "not a torch device"),
    ],
)
def test_impossible_options_are_explained(
    tiny_llama_dir: Path, options: dict[str, object], message: str
) -> None:
    for function in (ls.load, ls.plan):
        with pytest.raises(ls.PlanError, match=message):
            function(tiny_llama_dir, **options)  # type: ignore[operator]
