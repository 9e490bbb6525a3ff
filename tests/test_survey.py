# SPDX-License-Identifier: Apache-2.0
"The survey's tables: cells as in the survey, every path and name exists, every gap is explained."

import csv
import re

import pytest

from cop_repro.benchmark.survey import (
    ADDED,
    TABLES,
    implemented,
    nearest,
    read_survey,
    row_hash,
    survey_faults,
)
from cop_repro.core import BadInput
from cop_repro.data.real_sets import REAL_SETS
from cop_repro.measure.registry import REGISTRY


@pytest.fixture(scope="module")
def survey(root):
    return read_survey(root / "refs" / "survey")


def test_tables_have_no_fault(survey):
    assert survey_faults(survey) == []


def test_counts(survey):
    groups = {name: [row["group"] for row in rows] for name, rows in survey.items()}
    assert groups["methods"].count("general") == 23 and groups["methods"].count("movement") == 10
    assert [groups["datasets"].count(g) for g in ("general", "movement", "image")] == [15, 5, 6]
    assert [groups["objective_metrics"].count(g) for g in ("music", "correspondence")] == [13, 7]
    assert [groups["subjective_metrics"].count(g) for g in ("music", "correspondence")] == [5, 4]


# Of the survey's cells, joined by tabs, in the order of the tables: they were read once.
CELLS = {
    "methods": "a5cfc7524170dc73",
    "datasets": "cb92540fa6d1916c",
    "objective_metrics": "c879ecdcecee35b3",
    "subjective_metrics": "37f42ad1ae0103ba",
}


def test_cells_are_those_of_the_survey(survey):
    "One hash of a whole table: a row whose cells and hash were both edited is noticed, too."
    for name, table in TABLES.items():
        own = [row for row in survey[name] if row["group"] != ADDED]
        text = ["\t".join(row[column] for column in table.cells) for row in own]
        assert row_hash(text) == CELLS[name], name


def test_every_path_exists_and_every_gap_is_explained(survey, root):
    for rows in survey.values():
        for row in rows:
            if row["implemented"]:
                assert (root / row["implemented"]).is_file(), row["id"]
            else:
                assert len(row["absent_because"].split()) >= 2, row["id"]


def test_names_are_registered(survey):
    names = {row["metric"] for rows in survey.values() for row in rows if row.get("metric")}
    assert names and names <= set(REGISTRY.metrics)
    loaders = {row["loader"] for row in survey["datasets"] if row["loader"]}
    assert loaders and loaders <= set(REAL_SETS)


def test_links(survey):
    "Every method and data set has the address of its paper."
    for name in ("methods", "datasets"):
        for row in survey[name]:
            assert re.fullmatch(r"https?://[^\s]+", row["paper"]), row["id"]
    assert all(row["link"] for row in survey["datasets"] if row["access"] == "Link")
    assert not any(row["link"] for row in survey["datasets"] if row["access"] == "-")


def test_files_are_rectangular(root):
    for path in sorted((root / "refs" / "survey").glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            assert len({len(row) for row in csv.reader(file)}) == 1, path.name


def test_the_project_has_its_rows(survey):
    added = {row["id"] for rows in survey.values() for row in rows if row["group"] == ADDED}
    assert added == {"cop", "cop-benchmark"}
    assert implemented(survey["objective_metrics"]) == (13, 20)
    assert all(d >= 2 for d, _ in nearest(survey["methods"], "cop", 33))
    with pytest.raises(BadInput, match="no method 'x'"):
        nearest(survey["methods"], "x")


def test_missing_tables(tmp_path):
    with pytest.raises(BadInput, match="no table methods.csv"):
        read_survey(tmp_path)
