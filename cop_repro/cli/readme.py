"`cop readme`: the README's results table, from reports/results.json."

import json

from cop_repro.core import CopError, project_root

HELP = "write (or check) the README's results table"

BEGIN = "<!-- results -->"
END = "<!-- end of results -->"

HEADLINES = (  # table, row, metric
    ("table4", "no_guidance", "si_sdr_spec"),
    ("table4", "cop_piano", "si_sdr_spec"),
    ("table5", "cop_velocity", "si_sdr_spec"),
    ("table5", "cop_velocity_dpo", "si_sdr_spec"),
    ("table5", "cop_shipped", "si_sdr_spec"),
    ("table4", "audeo_style", "si_sdr_spec"),
    ("table4", "audeo_style_same_soundfont", "si_sdr_spec"),
    ("controls", "codec", "si_sdr_spec"),
    ("controls", "shuffled", "si_sdr_spec"),
    ("table4", "no_guidance", "transcription_f1"),
    ("table4", "cop_piano", "transcription_f1"),
    ("table5", "cop_shipped", "transcription_f1"),
    ("table4", "audeo_style", "transcription_f1"),
    ("controls", "truth", "transcription_f1"),
    ("table2", "base", "label_accuracy"),
    ("table2", "base", "event_f1"),
    ("table2", "base_shuffled", "event_f1"),
    ("table3", "base", "label_accuracy"),
    ("table3", "base_direction", "pitch_direction"),
    ("table3", "base_direction", "pace_direction"),
    ("roll", "video2roll_clean", "onset_f1"),
    ("roll", "video2roll", "onset_f1"),
    ("real", "cop_perform", "onset_f1"),
    ("real", "random_notes", "onset_f1"),
    ("real", "cop_perform", "lag_onset_f1"),
    ("real", "random_notes", "lag_onset_f1"),
    ("real", "cop_perform_basic_pitch", "lag_onset_f1"),
    ("real", "basic_pitch", "onset_f1"),
)


def add_arguments(parser) -> None:
    "Write or check."
    parser.add_argument("--check", action="store_true")


def run(args) -> int:
    "Write the results table into README.md, between its two marks, or fail where it is stale."
    root = project_root()
    path = root / "README.md"
    text = path.read_text()
    results = json.loads((root / "reports" / "results.json").read_text())
    made = _with_table(text, readme_table(results))
    if not args.check:
        path.write_text(made)
    elif made != text:
        raise CopError("the README's table is not that of reports/results.json: run `cop readme`")
    return 0


def _with_table(text: str, table: str) -> str:
    "The README with another table."
    head, _, rest = text.partition(f"{BEGIN}\n")
    _, _, tail = rest.partition(END)
    if not tail:
        raise CopError(f"README.md lacks the marks '{BEGIN}' and '{END}'")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def readme_table(results: list[dict]) -> str:
    "The README's table: headline numbers of reports/results.json, ours beside the paper's."
    found = {(r["table"], r["row"], r["metric"], r["label"] == "paper"): r for r in results}
    lines = [
        "| table | row | metric | ours (95 % interval) | n | label | paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for headline in HEADLINES:
        ours = found.get((*headline, False))
        if ours is not None:
            lines.append(_table_line(ours, found.get((*headline, True))))
    return "\n".join(lines)


def _table_line(ours: dict, paper: dict | None) -> str:
    "One row of the table."
    unit = f" [{ours['unit']}]" if ours["unit"] else ""
    published = "" if paper is None else f"{paper['value']:.2f}"
    cells = (
        ours["table"],
        ours["row"],
        f"{ours['metric']}{unit}",
        _value(ours),
        ours["n"] or "",
        ours["label"],
        published,
    )
    return f"| {' | '.join(map(str, cells))} |"


def _value(line: dict) -> str:
    "A value with its interval."
    if line["value"] is None:
        return "not run"
    if line["ci_low"] is None:
        return f"{line['value']:.2f}"
    return f"{line['value']:.2f} [{line['ci_low']:.2f}, {line['ci_high']:.2f}]"
