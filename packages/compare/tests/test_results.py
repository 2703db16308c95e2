from __future__ import annotations

import pytest

from layerstream_compare.case import Case
from layerstream_compare.errors import ResultsError
from layerstream_compare.measurement import Measurement
from layerstream_compare.results import FILE_NAME, ResultsFile, read_results


def finished(number: int, **changes) -> Measurement:
    case = Case(model="m", variant="resident", prompt="Grüße\u2028\r", max_new_tokens=1, round=number)
    return Measurement(**({"case": case, "status": "ok", "text": "ä\n"} | changes))


def test_added_measurements_are_read_back(tmp_path):
    with ResultsFile(tmp_path / "new" / "folder") as results:
        for number in range(3):
            results.add(finished(number))
    assert read_results(tmp_path / "new" / "folder") == [finished(0), finished(1), finished(2)]


def test_a_file_cut_at_any_byte_keeps_every_finished_line_and_accepts_new_ones(tmp_path):
    with ResultsFile(tmp_path) as results:
        results.add(finished(0))
        results.add(finished(1))
    path = tmp_path / FILE_NAME
    content = path.read_bytes()
    first_bytes = content.index(b"\n")
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        # a line counts once its last brace is there, with or without the newline
        complete = (length >= first_bytes) + (length >= len(content) - 1)
        with ResultsFile(tmp_path) as results:
            assert list(results.measurements.values()) == [finished(0), finished(1)][:complete], length
            results.add(finished(2))
        assert read_results(tmp_path) == [*[finished(0), finished(1)][:complete], finished(2)], length


def test_the_newest_result_of_a_case_wins(tmp_path):
    with ResultsFile(tmp_path) as results:
        results.add(finished(0, status="failed", reason="no"))
        results.add(finished(1))
        results.add(finished(0))
    assert read_results(tmp_path) == [finished(1), finished(0)]


@pytest.mark.parametrize(
    "line", [b'{"schema_version": 99}\n', b"garbage\n", b"[]\n", b'{"schema_version": 2}\n']
)
def test_a_complete_invalid_line_is_rejected_with_its_number_and_kept(tmp_path, line):
    path = tmp_path / FILE_NAME
    path.write_bytes(finished(0).to_json().encode() + b"\n" + line)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="line 2"):
        ResultsFile(tmp_path)
    assert path.read_bytes() == before


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    with ResultsFile(tmp_path), pytest.raises(ResultsError, match="another run is writing"):
        ResultsFile(tmp_path)
    ResultsFile(tmp_path).__exit__()


def test_reading_a_folder_without_results_reports_the_missing_file(tmp_path):
    with pytest.raises(ResultsError, match=r"no results in .*results\.jsonl"):
        read_results(tmp_path)
