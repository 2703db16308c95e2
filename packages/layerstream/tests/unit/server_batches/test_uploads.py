"""An upload goes to disk as it comes; one that is refused or breaks off leaves nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from kit.batch_apps import Clients, run
from kit.batch_stores import StoreKit

from layerstream.server.batches.settings import BatchSettings

FORM_END = b"\r\n--X--\r\n"


def form(*parts: bytes, name: bytes = b"in.jsonl") -> dict[str, Any]:
    """Return a form with a file of `parts` and a purpose, as the arguments of a request."""
    head = b'--X\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head += b'--X\r\nContent-Disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\n'

    async def stream() -> AsyncIterator[bytes]:
        for piece in (head, *parts, FORM_END):
            yield piece

    return {"content": stream(), "headers": {"content-type": "multipart/form-data; boundary=X"}}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"in.jsonl", "in.jsonl"),
        (b"../../etc/passwd", "passwd"),
        (b"C:\\\\dir\\\\in.jsonl", "in.jsonl"),
        (b"\xff\x01\tin.jsonl", "\ufffdin.jsonl"),
        ("日本.jsonl".encode(), "日本.jsonl"),
        (b"x" * 400, "x" * 255),
        (b"", "upload"),
        (b"..", ".."),
    ],
)
def test_a_name_is_shown_and_is_no_path(kit: StoreKit, name: bytes, shown: str) -> None:
    async def work(clients: Clients) -> None:
        uploaded = (await clients.plain.post("/files", **form(b"x", name=name))).json()
        assert uploaded["filename"] == shown
        assert kit.names_on_disk() == {uploaded["id"]}
        assert (await clients.plain.get(f"/files/{uploaded['id']}/content")).content == b"x"

    run(kit, work, is_working=False)


def test_a_large_file_is_written_piece_by_piece(kit: StoreKit) -> None:
    """While the client still sends, most of what it has sent is on disk already."""
    sizes: list[int] = []
    pieces = 40

    async def work(clients: Clients) -> None:
        arguments = form()
        head = b""
        async for piece in form()["content"]:
            head += piece
        head = head.removesuffix(FORM_END)

        async def stream() -> AsyncIterator[bytes]:
            yield head
            for _ in range(pieces):
                yield b"x" * 500_000
                (part,) = (kit.folder / "files").iterdir()
                sizes.append(part.stat().st_size)
            yield FORM_END

        answer = await clients.plain.post("/files", content=stream(), headers=arguments["headers"])
        assert answer.json()["bytes"] == pieces * 500_000

    run(kit, work, is_working=False)
    assert sizes == sorted(sizes)
    assert sizes[-1] > (pieces - 5) * 500_000


def test_a_file_that_is_too_large_is_refused_before_it_has_all_come(kit: StoreKit) -> None:
    kit.reopen(BatchSettings(most_file_bytes=1_000))
    sent = []

    async def work(clients: Clients) -> None:
        async def stream() -> AsyncIterator[bytes]:
            async for piece in form(*[b"x" * 600] * 50)["content"]:
                sent.append(piece)
                yield piece

        answer = await clients.plain.post("/files", content=stream(), headers=form()["headers"])
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "file_too_large"
        announced = await clients.plain.post(
            "/files", content=b"", headers=form()["headers"] | {"content-length": "1000000"}
        )
        assert announced.status_code == 413
        assert (await clients.plain.post("/files", **form(b"x" * 1_000))).status_code == 200

    run(kit, work, is_working=False)
    assert len(sent) < 10
    assert len(kit.names_on_disk()) == 1


def test_a_client_that_goes_away_leaves_no_file(kit: StoreKit) -> None:
    class GoneError(Exception):
        pass

    async def work(clients: Clients) -> None:
        async def stream() -> AsyncIterator[bytes]:
            yield (
                b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 5_000_000
            )
            assert len(kit.names_on_disk()) == 1
            raise GoneError

        with pytest.raises(GoneError):
            await clients.plain.post("/files", content=stream(), headers=form()["headers"])

    run(kit, work, is_working=False)
    assert kit.names_on_disk() == set()


def part(name: str, value: bytes = b"x") -> bytes:
    return b'--X\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + value + b"\r\n"


PURPOSE, FILE, END = part("purpose", b"batch"), part("file"), b"--X--\r\n"


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"", "application/json", "multipart/form-data"),
        (b"", "multipart/form-data", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=" + "x" * 500, "boundary is too long"),
        (b"", None, "ends too early"),
        (b"nonsense", None, "damaged"),
        (FILE + PURPOSE, None, "ends too early"),
        (PURPOSE + END, None, "has no file"),
        (FILE + END, None, "has no purpose"),
        (FILE + part("purpose", b"fine-tune") + END, None, "purpose must be 'batch'"),
        (FILE + FILE + PURPOSE + END, None, "'file' twice"),
        (FILE + PURPOSE + PURPOSE + END, None, "'purpose' twice"),
        (FILE + PURPOSE + part("expires_after[seconds]") + END, None, "parameter 'expires_after[seconds]'"),
        (FILE + part("purpose", b"x" * 2_000) + END, None, "'purpose' is too long"),
        (b"".join(part(f"p{number}") for number in range(20)) + END, None, "more than 16 parts"),
    ],
)
def test_a_form_with_a_mistake_gets_one_error_and_leaves_no_file(
    kit: StoreKit, body: bytes, content_type: str | None, message: str
) -> None:
    headers = {"content-type": content_type or "multipart/form-data; boundary=X"}

    async def work(clients: Clients) -> None:
        for size in (len(body) or 1, 7):  # at once, and in small pieces

            async def stream(size: int = size) -> AsyncIterator[bytes]:
                for start in range(0, len(body), size):
                    yield body[start : start + size]

            answer = await clients.plain.post("/files", content=stream(), headers=headers)
            assert answer.status_code == 400
            assert message in answer.json()["error"]["message"]

    run(kit, work, is_working=False)
    assert kit.names_on_disk() == set()


@pytest.mark.parametrize("size", [1, 3, 1_000_000])
def test_a_form_arrives_whole_in_pieces_of_any_size_and_parts_in_any_order(kit: StoreKit, size: int) -> None:
    contents = b"a\r\n--Y\r\r\n--\r\n" * 3
    body = part("file", contents) + PURPOSE + END

    async def work(clients: Clients) -> None:
        async def stream() -> AsyncIterator[bytes]:
            for start in range(0, len(body), size):
                yield body[start : start + size]

        answer = await clients.plain.post("/files", content=stream(), headers=form()["headers"])
        assert (await clients.plain.get(f"/files/{answer.json()['id']}/content")).content == contents

    run(kit, work, is_working=False)


def test_too_many_files_are_refused(kit: StoreKit) -> None:
    kit.reopen(BatchSettings(most_files=1))

    async def work(clients: Clients) -> None:
        await clients.openai.files.create(file=("a", b"x"), purpose="batch")
        with pytest.raises(openai.BadRequestError, match="delete some"):
            await clients.openai.files.create(file=("a", b"x"), purpose="batch")

    run(kit, work, is_working=False)
