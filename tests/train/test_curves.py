"""The curves of a run that was disturbed."""

from pathlib import Path

from dinov2.train.curves import append_row, read_rows


def test_a_line_that_a_full_disk_cut_short_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_row(path, 1, {"total": 2.0})
    with path.open("a") as stream:
        stream.write('{"step": 2, "to')
    assert [row["step"] for row in read_rows(path)] == [1]
    append_row(path, 2, {"total": 1.0})
    assert [(row["step"], row["total"]) for row in read_rows(path)] == [(1, 2.0), (2, 1.0)]
