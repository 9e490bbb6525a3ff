# SPDX-License-Identifier: Apache-2.0
"What a public repository owes its readers: pages, commands and links that hold, licences, cards."

import argparse
import json
import os
import re
import subprocess
import tomllib
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError
from safetensors.numpy import save_file

from cop_repro.cli import build_parser, cards, command_modules, main
from cop_repro.cli._marks import with_table
from cop_repro.core import CopError, project_root
from cop_repro.data.notes import write_midi
from cop_repro.data.performance import PIANISTS, assign_fingers, etudes, perform
from cop_repro.data.rendering import Nuisance, render
from cop_repro.data.video import write_video

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WRAPPED = [p for p in PAGES if p.parent != ROOT or p.stem in ("CHANGELOG", "CONTRIBUTING")]
MAX_COLUMNS = 110
LINK = re.compile(r"\[[^\[\]]*\]\(([^()\s]+)\)")
SPDX = "SPDX-License-Identifier"
APACHE = f"# {SPDX}: Apache-2.0"


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    "Markdown without code blocks and code spans."
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(path: Path) -> set[str]:
    "Anchors of a page's headings, as GitHub and the documentation site make them."
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


MADE = ("reports/listen", "reports/ratings")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_relative_links_resolve(page):
    for link in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists() and path.is_relative_to(ROOT), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(path), f"{link}: no such heading"


def test_a_broken_anchor_is_noticed(tmp_path):
    (tmp_path / "a.md").write_text("# One\n\n```bash\n# no heading\n```\n\n## `cop x`: two, 3\n")
    assert anchors(tmp_path / "a.md") == {"one", "cop-x-two-3"}


@pytest.mark.parametrize("page", WRAPPED, ids=named)
def test_prose_is_wrapped(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    prose = [line for line in text.split("\n") if not line.startswith("|")]
    long = [line for line in prose if len(LINK.sub("", line)) > MAX_COLUMNS]
    assert not long, long[0]


# Commands


def quoted(text: str) -> list[str]:
    "Code spans and lines of shell blocks."
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)
    lines = [line.split(" # ")[0] for block in blocks for line in block.split("\n")]
    return lines + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def arguments_of(text: str, program: str) -> list[list[str]]:
    "What follows a program's name wherever a page quotes it."
    pattern = re.compile(rf"(?:^|[\s(])(?:\.venv/bin/)?{program} (.+)")
    found = [pattern.search(piece) for piece in quoted(text)]
    return [match.group(1).split() for match in found if match]


def options() -> dict[str, set[str]]:
    "Options by command."
    return {name: options_of(parser) for name, parser in parsers_below(build_parser()).items()}


def parsers_below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    "Parsers of the actions of a command, or of all commands."
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(groups[0].choices) if groups else {}


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    "Options of a command, those of its actions included."
    own = {option for action in parser._actions for option in action.option_strings}
    return own.union(*(options_of(inner) for inner in parsers_below(parser).values()))


def wrong_commands(text: str) -> list[str]:
    "Quoted commands of ours that do not exist, or options that they do not have."
    known, wrong = options(), []
    for name, *rest in arguments_of(text, "cop"):
        if name not in known:
            wrong.append(f"cop {name}" if re.match(r"[a-z]", name) else "")
            continue
        given = {word.strip("'\",").partition("=")[0] for word in rest if word.startswith("-")}
        wrong += [f"cop {name} {option}" for option in sorted(given - known[name])]
    return [piece for piece in wrong if piece]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_quoted_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    assert not wrong_commands(text)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {words[0] for words in arguments_of(text, "make")} <= targets
    profiles = {p.stem for p in (ROOT / "profiles").glob("*.yaml")} | {"default", "NAME", "mine"}
    for name, *rest in arguments_of(text, "cop"):
        if name in ("profile", "verdicts") and rest:
            assert rest[0] in profiles, f"profile {rest[0]}"
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    for name, *rest in arguments_of(text, "dvc"):
        if name == "repro":
            assert {word.split("@")[0] for word in rest if word[0] != "-"} <= stages


def test_wrong_commands_are_noticed():
    text = (
        "`cop perfrom x`, `cop score a b --metric m`, `.venv/bin/cop doctor`, `cop score REF EST`"
    )
    assert wrong_commands(text) == ["cop perfrom", "cop score --metric"]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_quoted_files_exist(page):
    "Files and notebooks of the repository that a page names."
    pattern = re.compile(r"^(?:nbs|cop_repro|profiles|refs|tests|reports|data|docs)/[\w./-]+$")
    for piece in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        if not pattern.match(piece) or re.search(r"\bNAME\b|\bmine\b|\.\.\.", piece):
            continue  # a pattern, or an example
        if piece.startswith(MADE):
            continue  # made by a command, not in git
        forms = (piece, f"{piece}.ipynb", f"nbs/{piece}.ipynb")
        assert any((ROOT / form).exists() for form in forms), piece


def test_every_command_is_documented():
    text = "".join(p.read_text(encoding="utf-8") for p in PAGES)
    lacking = [name for name in command_modules() if f"cop {name}" not in text]
    assert not lacking, f"no page mentions cop {', cop '.join(lacking)}"


# Python


@pytest.fixture()
def workshop(tmp_path, monkeypatch):
    "A folder with the files that docs/python.md names: two seconds of an étude, true and made."
    player = PIANISTS["crisp"]
    notes = perform(etudes(ROOT / "data" / "etudes")[3], player, player, 1).crop(1, 3)
    fingers = assign_fingers(notes)
    frames = render(notes, fingers, 2.0, "top", Nuisance.none(), (192, 640), 25.0, seed=0).frames
    write_video(tmp_path / "piano.mp4", frames, 25.0)
    write_midi(notes, tmp_path / "in.mid")
    sound = np.sin(np.arange(24_000) / 9).astype(np.float32) / 2
    for name, level in (("ref", 1.0), ("est", 0.5)):
        (tmp_path / name).mkdir()
        write_midi(notes, tmp_path / name / "a.mid")
        soundfile.write(tmp_path / name / "a.wav", level * sound, 24_000)
    os.symlink(ROOT / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_snippets_run(workshop):
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    names = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert len(blocks) == 4
    assert len(names["read_midi"]("out.mid")) > 3
    assert sorted(p.name for p in (workshop / "out").iterdir()) == sorted(names["files"])
    assert names["made"]["metrics"]["si_sdr_spec"]["value"] > 60
    assert names["made"]["metrics"]["onset_f1"]["value"] == 1
    assert tuple(names["result"].latents.shape) == (1, 75, 128)


# Metadata


@pytest.fixture(scope="module")
def settings() -> dict:
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


@pytest.fixture(scope="module")
def citation() -> dict:
    return yaml.load((ROOT / "CITATION.cff").read_text(encoding="utf-8"), yaml.BaseLoader)


@pytest.fixture(scope="module")
def citation_schema() -> Draft7Validator:
    schema = json.loads((ROOT / "tests" / "data" / "cff-1.2.0.schema.json").read_text())
    assert schema["$id"].startswith("https://citation-file-format.github.io/1.2.0/")
    return Draft7Validator(schema)


def with_numbers(value):
    "Years of a file that was read as text, which keeps dates and versions as they are written."
    if isinstance(value, dict):
        return {k: int(v) if k == "year" else with_numbers(v) for k, v in value.items()}
    return [with_numbers(v) for v in value] if isinstance(value, list) else value


def test_citation_is_valid(citation, citation_schema):
    citation_schema.validate(with_numbers(citation))
    wrong = with_numbers(citation) | {"licence": "Apache-2.0"}
    with pytest.raises(ValidationError, match="licence"):
        citation_schema.validate(wrong)


def test_citation_says_what_settings_say(citation, settings):
    assert citation["version"] == settings["version"]
    assert citation["title"].startswith(f"{settings['lib_name']}:")
    assert [author["name"] for author in citation["authors"]] == [settings["author"]]
    assert (settings["license"], citation["license"]) == ("apache2", "Apache-2.0")
    assert len(citation["references"]) == 3
    for work in citation["references"]:
        number = work["url"].removeprefix("https://arxiv.org/abs/")
        assert work["doi"] == f"10.48550/arXiv.{number}"
        assert work["identifiers"] == [{"type": "other", "value": f"arXiv:{number}"}]


def test_changelog_has_this_version(citation):
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.+)$", text, re.M)
    assert heads[0] == "Unreleased"
    assert heads[1] == f"{citation['version']} - {citation['date-released']}"


def test_codemeta_says_what_settings_say(settings, citation):
    made = json.loads((ROOT / "codemeta.json").read_text(encoding="utf-8"))
    assert made["@context"] == "https://w3id.org/codemeta/3.0"
    assert made["@type"] == "SoftwareSourceCode"
    assert (made["name"], made["version"]) == (settings["lib_name"], settings["version"])
    assert made["description"] == settings["description"]
    assert made["keywords"] == settings["keywords"].split()
    assert made["license"] == f"https://spdx.org/licenses/{citation['license']}"
    assert made["runtimePlatform"] == f"Python >={settings['min_python']}"
    assert [author["name"] for author in made["author"]] == [settings["author"]]
    assert made["copyrightHolder"]["name"] == settings["author"]
    assert made["datePublished"] == citation["date-released"]
    works = {work["@id"]: work["name"] for work in made["referencePublication"]}
    cited = {f"https://doi.org/{w['doi']}": w["title"] for w in citation["references"]}
    assert works.items() <= cited.items() and len(works) == 2
    for key in ("readme", "releaseNotes", "buildInstructions"):
        assert (ROOT / made[key]).is_file()


def test_codecheck_follows_its_specification(citation):
    "https://codecheck.org.uk/spec/config/1.0/, the part that authors write."
    text = (ROOT / "codecheck.yml").read_text(encoding="utf-8")
    made = yaml.safe_load(text)
    assert text.startswith("%YAML 1.1\n---\n")
    assert made["version"] == "https://codecheck.org.uk/spec/config/1.0/"
    files = [entry["file"] for entry in made["manifest"]]
    assert len(set(files)) == len(files)
    for entry in made["manifest"]:
        assert entry["comment"] and not Path(entry["file"]).is_absolute()
        assert (ROOT / entry["file"]).resolve().is_relative_to(ROOT)
        assert (ROOT / entry["file"]).is_file(), entry["file"]
    assert made["paper"]["title"] == citation["references"][0]["title"]
    assert made["paper"]["reference"] == citation["references"][0]["url"]
    names = [author["name"] for author in made["paper"]["authors"]]
    paper = [
        f"{a['given-names']} {a['family-names']}" for a in citation["references"][0]["authors"]
    ]
    assert names == [*(a["name"] for a in citation["authors"]), *paper]
    assert "codechecker" not in made and "report" not in made, "who checks adds these"


def test_codecheck_lists_what_a_rerun_makes():
    "The manifest is what the last stage writes; the rest of the reports is named as not remade."
    made = yaml.safe_load((ROOT / "codecheck.yml").read_text(encoding="utf-8"))
    report = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["report"]
    outputs = [next(iter(o)) for o in report["outs"] + report["metrics"]]
    for entry in made["manifest"]:
        assert any(entry["file"] == o or entry["file"].startswith(f"{o}/") for o in outputs)
    inputs = [d for d in report["deps"] if d.startswith("reports/")]
    assert set(inputs) <= set(made["cop_repro_not_remade"])
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for path in made["cop_repro_not_remade"]:
        assert (ROOT / path).is_file() and f"| `{path}` |" in text, path


# Cards


def test_cards_are_fresh():
    assert main(["cards", "--check"]) == 0


def test_every_asset_has_a_card():
    index = (ROOT / "docs" / "cards" / "README.md").read_text(encoding="utf-8")
    files = {path.stem for path in cards.card_files(ROOT)}
    assert files == set(cards.card_facts(ROOT))
    assert all(f"({name}.md)" in index for name in files)
    for path in cards.card_files(ROOT):
        text = path.read_text(encoding="utf-8")
        assert "limits" in text or "What it cannot show" in text, path.name
        assert "\n## Licence\n" in text, path.name
        assert not re.search(r"@[A-Z]+@", text), f"{path.name} has a gap that was not filled"


def test_the_facts_of_an_asset(tmp_path):
    meta = {"meta": json.dumps({"split": "0123", "latents": "4567"})}
    path = tmp_path / "toy.safetensors"
    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros(2, np.float16)}, path, meta)
    table = cards._asset_table(path)
    assert "| parameters, buffers | 17 in 2 tensors (F16, F32) |" in table
    assert f"| size | {path.stat().st_size:,} bytes |" in table
    assert "| split | `0123` |" in table and "| trained on latents | `4567` |" in table
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert cards._asset_table(path) != table, "a flipped byte changes the hash"


def test_a_card_without_marks_is_refused():
    page = "a\n<!-- facts -->\n{}\n<!-- end of facts -->\nb"
    assert with_table("x.md", page.format("old"), "facts", "new") == page.format("new")
    with pytest.raises(CopError, match="lacks the marks"):
        with_table("x.md", "a\nb", "facts", "new")


def test_a_stale_card_is_refused(tmp_path, monkeypatch, capsys):
    "In a copy of the tree with another result."
    for name in ("settings.ini", "params.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in ("data", "docs"):
        os.symlink(ROOT / name, tmp_path / name)
    (tmp_path / "reports").mkdir()
    for name in ("stages", "views"):
        os.symlink(ROOT / "reports" / name, tmp_path / "reports" / name)
    results = json.loads((ROOT / "reports" / "results.json").read_text())
    codec = next(r for r in results["lines"] if (r["row"], r["metric"]) == ("codec", "si_sdr_spec"))
    codec["value"] -= 1
    (tmp_path / "reports" / "results.json").write_text(json.dumps(results))
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path
    assert main(["cards", "--check"]) == 2
    assert "docs/cards/codec.md are stale: run `cop cards`" in capsys.readouterr().err


# Licences


def tracked_files() -> list[str]:
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()]


def by_hand(name: str) -> bool:
    "Whether a module is written by hand."
    if not name.endswith(".py") or name.endswith("_modidx.py"):
        return False
    text = (ROOT / name).read_text(encoding="utf-8")
    return "# AUTOGENERATED! DO NOT EDIT!" not in text and text.strip() != ""


def exported_only(name: str) -> bool:
    "Packages that nbdev makes hold an empty or one-line __init__.py."
    return name.startswith("cop_repro/") and name.endswith("__init__.py") and "cli" not in name


def test_modules_written_by_hand_say_their_licence():
    modules = [n for n in tracked_files() if by_hand(n) and not exported_only(n)]
    assert len(modules) > 60
    lacking = [n for n in modules if not (ROOT / n).read_text().startswith(f"{APACHE}\n")]
    assert not lacking, f"no SPDX line: {lacking}"


def matches(path: str, pattern: str) -> bool:
    "REUSE's globs: `**` matches anything, `*` anything but a slash."
    parts = re.split(r"(\*\*|\*)", pattern)
    wild = {"**": ".*", "*": "[^/]*"}
    return re.fullmatch("".join(wild.get(p, re.escape(p)) for p in parts), path) is not None


def test_every_file_has_a_licence():
    reuse = tomllib.loads((ROOT / "REUSE.toml").read_text(encoding="utf-8"))
    assert reuse["version"] == 1
    notes = reuse["annotations"]
    for name in tracked_files():
        covering = [n for n in notes if matches(name, n["path"])]
        assert covering, f"{name} is not covered by REUSE.toml"
        text = ROOT / "LICENSES" / f"{covering[-1][SPDX]}.txt"
        assert text.is_file() and covering[-1]["SPDX-FileCopyrightText"]
    used = {n[SPDX] for n in notes}
    assert {p.stem for p in (ROOT / "LICENSES").iterdir()} == used
    schema = [n for n in notes if matches("tests/data/cff-1.2.0.schema.json", n["path"])]
    assert schema[-1][SPDX] == "CC-BY-4.0"


def test_the_licence_is_one_text():
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "LICENSES" / "Apache-2.0.txt").read_bytes()


def test_every_asset_is_in_the_table_of_uses():
    text = (ROOT / "LICENSES.md").read_text(encoding="utf-8")
    uses = text[text.index("## May I use this for") :]
    for path in (ROOT / "data" / "assets").glob("*.safetensors"):
        assert f"`{path.stem}`" in uses, path.stem
