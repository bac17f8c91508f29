"""Files of results: which runs they hold, and what is written next to them."""

from experiments.runs import append_rows, curves_of, holds_run, write_report

COLUMNS = ("arm", "seed", "accuracy")


def test_a_run_is_held_once_its_row_is_there(tmp_path):
    results = tmp_path / "new" / "results.csv"
    assert not holds_run(results, {"arm": "a", "seed": "0"})
    append_rows(results, COLUMNS, [{"arm": "a", "seed": 0, "accuracy": 0.5}])
    assert holds_run(results, {"arm": "a", "seed": "0"})
    assert not holds_run(results, {"arm": "a", "seed": "1"})
    assert not holds_run(results, {"arm": "b", "seed": "0"})


def test_table_and_figure_of_all_rows_lie_next_to_the_results(tmp_path):
    results = tmp_path / "results.csv"
    append_rows(results, COLUMNS, [{"arm": arm, "seed": 0, "accuracy": 0.5} for arm in "ab"])
    write_report(
        results,
        lambda rows: ", ".join(row["arm"] for row in rows),
        lambda rows, path: path.write_text(f"{len(rows)} points"),
    )
    assert (tmp_path / "results.md").read_text() == "a, b"
    assert (tmp_path / "results.png").read_text() == "2 points"
    assert curves_of(results) == tmp_path / "results_curves.csv"
