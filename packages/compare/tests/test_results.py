from __future__ import annotations

import pytest

from layerstream_compare.case import Case
from layerstream_compare.errors import ResultsError
from layerstream_compare.measurement import Measurement
from layerstream_compare.results import FILE_NAME, ResultsFile, read_results


def some(number: int, **changes) -> Measurement:
    case = Case(model="m", variant="resident", prompt="Grüße\u2028\r", max_new_tokens=1, round=number)
    return Measurement(**({"case": case, "status": "ok", "text": "ä\n"} | changes))


def test_what_was_added_is_read_back(tmp_path):
    with ResultsFile(tmp_path / "new" / "folder") as results:
        for number in range(3):
            results.add(some(number))
    assert read_results(tmp_path / "new" / "folder") == [some(0), some(1), some(2)]


def test_a_file_cut_at_any_byte_loses_no_finished_line_and_takes_new_ones(tmp_path):
    with ResultsFile(tmp_path) as results:
        results.add(some(0))
        results.add(some(1))
    path = tmp_path / FILE_NAME
    content = path.read_bytes()
    first_bytes = content.index(b"\n")
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        # a line counts from its last brace on, with or without the line break
        whole = (length >= first_bytes) + (length >= len(content) - 1)
        with ResultsFile(tmp_path) as results:
            assert list(results.measurements.values()) == [some(0), some(1)][:whole], length
            results.add(some(2))
        assert read_results(tmp_path) == [*[some(0), some(1)][:whole], some(2)], length


def test_the_newest_result_of_a_case_counts(tmp_path):
    with ResultsFile(tmp_path) as results:
        results.add(some(0, status="failed", reason="no"))
        results.add(some(1))
        results.add(some(0))
    assert read_results(tmp_path) == [some(1), some(0)]


@pytest.mark.parametrize(
    "line", [b'{"schema_version": 99}\n', b"garbage\n", b"[]\n", b'{"schema_version": 1}\n']
)
def test_a_whole_line_of_another_kind_is_refused_with_its_number_and_stays(tmp_path, line):
    path = tmp_path / FILE_NAME
    path.write_bytes(some(0).to_json().encode() + b"\n" + line)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="line 2"):
        ResultsFile(tmp_path)
    assert path.read_bytes() == before


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    with ResultsFile(tmp_path), pytest.raises(ResultsError, match="another run is writing"):
        ResultsFile(tmp_path)
    ResultsFile(tmp_path).__exit__()


def test_reading_a_folder_without_results_says_so(tmp_path):
    with pytest.raises(ResultsError, match=r"no results in .*results\.jsonl"):
        read_results(tmp_path)
