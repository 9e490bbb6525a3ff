# SPDX-License-Identifier: Apache-2.0
"Structure: imports point down, stages are thin, what is generated is fresh."

import ast
import base64
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cop_repro.cli import command_modules, main
from cop_repro.cli._profiles import OWN_OUTPUTS
from cop_repro.cli.fingerprints import notebook_modules
from cop_repro.cli.run import check_notebook
from cop_repro.core import CopError, ParamsError
from cop_repro.parameters import KEYS, SHAPES, check_params, load_params, merge

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted(
    p
    for p in (ROOT / "nbs").rglob("*.ipynb")
    if p.parent.name not in ("stages", "course") and ".ipynb_checkpoints" not in p.parts
)
STAGES = sorted((ROOT / "nbs" / "stages").glob("*.ipynb"))


def code_cells(path: Path, exported: bool = False) -> list[str]:
    cells = [
        "".join(c["source"])
        for c in json.loads(path.read_text())["cells"]
        if c["cell_type"] == "code"
    ]
    return [c for c in cells if c.startswith("#| export")] if exported else cells


def module_of(path: Path) -> str:
    return re.search(r"#\| default_exp (\S+)", "\n".join(code_cells(path))).group(1)


def imported_modules(source: str) -> set[str]:
    "Absolute names of the project's modules that a source imports, in any form."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return {name for name in found if name.split(".")[0] == "cop_repro"}


NUMBER = {f"cop_repro.{module_of(p)}": p.stem.split("_")[0] for p in LIBRARY}  # 56 < 56b < 57


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_imports_point_down(path):
    number, _, stem = path.stem.partition("_")
    assert module_of(path).split(".")[-1] == stem, "one notebook, one module of the same stem"
    for cell in code_cells(path, exported=True):
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cop_repro"):
                assert node.module in NUMBER, (
                    f"{path.stem} imports {node.module}, which no notebook exports "
                    "(the command line is not for library code)"
                )
                assert NUMBER[node.module] < number, f"{path.stem} imports {node.module} from above"
                assert all(a.name != "*" for a in node.names), "explicit names only"


NOT_FOR_LIBRARY_CODE = ("cop_repro.cli", "cop_repro.parameters", "cop_repro.pipeline")


def not_for_library_code(name: str) -> bool:
    return any(name == m or name.startswith(f"{m}.") for m in NOT_FOR_LIBRARY_CODE)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_library_code_knows_no_command_line(path):
    "Exported cells import neither commands nor parameter files nor what stage notebooks share."
    for cell in code_cells(path, exported=True):
        wrong = [name for name in imported_modules(cell) if not_for_library_code(name)]
        assert not wrong, f"{path.stem} imports {wrong}"


def test_what_is_not_for_library_code_is_recognised():
    source = "import cop_repro.cli.run\nfrom cop_repro import pipeline, core\nimport numpy"
    wrong = {name for name in imported_modules(source) if not_for_library_code(name)}
    assert wrong == {"cop_repro.cli.run", "cop_repro.pipeline"}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_library_notebook_is_clean(path):
    text = path.read_text()
    assert len(text) <= 300_000, f"{len(text)} bytes; at most 300 KB"
    assert not re.search(r"/(root|home|tmp|work)/[A-Za-z]", text), "a path of one machine"
    cells = json.loads(text)["cells"]
    assert any(
        "".join(c["source"]).startswith("# ") for c in cells if c["cell_type"] == "markdown"
    ), "a title"
    outputs = [o for c in cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"], "an error output"
    kinds = r'"(audio|video)/|data:(audio|video)|application/vnd.jupyter.widget'
    assert not re.search(kinds, json.dumps(outputs)), "no audio, video or widget outputs"
    for cell in code_cells(path, exported=True):
        assert not re.search(r"\bprint\(|\bTODO\b|\bFIXME\b|pickle\.load", cell)
        assert "torch.load(" not in cell or (
            path.stem == "41_encoders" and "weights_only=True" in cell and "def read_pickle" in cell
        ), "one place opens a pickle, tensors only"
        for node in ast.parse(cell).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.stem}: {node.name} has no docstring"


def test_stored_outputs_are_fresh():
    "Outputs are those of the present code; `cop notebooks` executes what is stale."
    assert main(["notebooks", "--check"]) == 0


def test_stored_pictures_have_a_palette():
    for path in LIBRARY:
        for cell in json.loads(path.read_text())["cells"]:
            for output in cell.get("outputs", []):
                if picture := "".join(output.get("data", {}).get("image/png", "")):
                    image = Image.open(io.BytesIO(base64.b64decode(picture)))
                    assert image.mode == "P", f"{path.stem}: run `cop notebooks {path.stem}`"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_names_exist(path):
    "Every project import in every cell names something that its module has."
    for cell in code_cells(path):
        source = "\n".join(l for l in cell.split("\n") if not l.startswith(("%", "!")))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cop_repro"):
                module = importlib.import_module(node.module)
                lacking = [a.name for a in node.names if not hasattr(module, a.name)]
                assert not lacking, f"{path.stem}: {node.module} lacks {lacking}"


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_stages_are_thin(path):
    cells = json.loads(path.read_text())["cells"]
    assert len([c for c in cells if c["cell_type"] == "code"]) <= 7
    source = "\n".join(code_cells(path))
    assert "def " not in source and "lambda" not in source
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in cells), (
        "stage notebooks keep no outputs"
    )
    check_notebook(path)


def test_pipeline_declares_stages_and_params():
    pipeline, params = (
        yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"],
        load_params(ROOT / "params.yaml"),
    )
    notebooks = {name: stage.get("do", stage)["cmd"].split()[2] for name, stage in pipeline.items()}
    assert set(notebooks.values()) == {p.stem for p in STAGES}
    assert set(notebooks.values()) <= set(params)
    prints = yaml.safe_load((ROOT / "fingerprints.yaml").read_text())
    for stage_name, stage in pipeline.items():
        body, name = stage.get("do", stage), notebooks[stage_name]
        wanted = [p for p in body["params"] if isinstance(p, str)]
        assert any(p == name or p.startswith(f"{name}.") for p in wanted), (
            f"{name} does not depend on its own section"
        )
        assert {"fingerprints.yaml": [name]} in body["params"] and name in prints, (
            f"{name} does not depend on its code"
        )
        assert body["cmd"].startswith(f"${{cop}} run {name}")
    for name in ("train_piano", "train_preference", "train_systems"):
        assert pipeline[name]["foreach"] == f"${{{name}.variants}}"
    groups = [n.removeprefix("evaluate_") for n in pipeline if notebooks[n] == "evaluate"]
    assert groups == list(params["evaluate"]["variants"])


def test_dvc_keeps_no_output_and_experiments_keep_all_reports():
    "`dvc pull` looks for cached outputs; `dvc exp` and `dvc metrics` see what git tracks."
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    ignored = (ROOT / ".gitignore").read_text().split()
    for name, stage in pipeline.items():
        body = stage.get("do", stage)
        for kind in ("outs", "metrics", "plots"):
            for entry in body.get(kind, ()):
                assert isinstance(entry, dict), f"{name}: {entry} would be cached"
                [(path, options)] = entry.items()
                assert options["cache"] is False, f"{name}: {path}"
                tracked = path.startswith("reports/")
                assert tracked or kind == "outs", f"{name}: {path} is no file of reports/"
                assert tracked or f"/{path.split('/')[0]}/" in ignored
    trained = [
        name
        for name in pipeline
        if name.startswith("train_") and "plots" in pipeline[name].get("do", pipeline[name])
    ]
    assert len(trained) == 8


def test_a_profile_keeps_what_its_own_stages_report():
    "A second run refreshes the scratch copy, but no output of its stages."
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    tables = load_params(ROOT / "params.yaml")["evaluate_systems"]["variants"]
    made = []
    for stage in pipeline.values():
        body = stage.get("do", stage)
        for kind in ("outs", "metrics", "plots"):
            made += [path for entry in body.get(kind, ()) for path in entry]
    reports = [path for path in made if path.startswith("reports/") and path != "reports/listen"]
    own = [path.replace("reports/${key}", f"reports/{name}") for path in reports for name in tables]
    assert own and all(f"{path}/".startswith(OWN_OUTPUTS) for path in own), own


def test_a_group_depends_on_the_models_of_its_rows():
    "Every file that a row is loaded from is, or lies in, a dependency of its group's stage."
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    variants = load_params(ROOT / "params.yaml")["evaluate"]["variants"]
    for group, rows in variants.items():
        deps = pipeline[f"evaluate_{group}"]["deps"]
        for row, entry in rows.items():
            for path in entry.get("models", {}).values():
                file = f"models/{path}".replace("models/../", "")
                assert any(file == d or file.startswith(f"{d}/") for d in deps), f"{row}: {file}"


def test_a_post_training_saves_what_its_variant_says():
    from cop_repro.training.stages import OBJECTIVES

    for name, entry in load_params(ROOT / "params.yaml")["train_preference"]["variants"].items():
        assert entry["made"] == f"{OBJECTIVES[entry['objective']].asset}.safetensors", name


def test_every_stage_section_is_read():
    "A section's first-level keys appear in the stage's notebook, or it is read as one dataclass."
    params = load_params(ROOT / "params.yaml")
    for path in STAGES:
        source = "\n".join(code_cells(path))
        if path.stem in SHAPES:
            assert f"stage.config({SHAPES[path.stem].rpartition('.')[2]})" in source
            continue
        for key in params[path.stem]:
            assert f'"{key}"' in source or key == "variants", f"{path.stem}.{key} is read by nobody"


def test_profiles_change_numbers_only():
    base = load_params(ROOT / "params.yaml")
    for path in sorted((ROOT / "profiles").glob("*.yaml")):
        merged = merge(base, load_params(path))
        assert merged["profile"] == path.stem and set(merged) == set(base)
        check_params(merged)
    with pytest.raises(ParamsError, match="lerning_rate"):
        merge(base, {"train_roll": {"train": {"lerning_rate": 1}}})


def test_modules_of_a_notebook_follow_imports():
    names = notebook_modules(ROOT / "nbs" / "stages" / "train_general.ipynb", ROOT)
    assert {
        "cop_repro.core",
        "cop_repro.model.dit",
        "cop_repro.model.flow",
        "cop_repro.training.loop",
    } <= set(names)
    assert "cop_repro.evaluation.report" not in names


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_the_command_line_enters_no_fingerprint(path):
    names = notebook_modules(path, ROOT)
    assert "cop_repro.pipeline" in names
    assert not [n for n in names if n == "cop_repro.cli" or n.startswith("cop_repro.cli.")]


def test_untagged_parameters_are_refused(tmp_path):
    notebook = json.loads(STAGES[0].read_text())
    for cell in notebook["cells"]:
        cell["metadata"].pop("tags", None)
    (tmp_path / "x.ipynb").write_text(json.dumps(notebook))
    with pytest.raises(CopError, match="tagged"):
        check_notebook(tmp_path / "x.ipynb")


def test_fingerprints_are_fresh():
    done = subprocess.run(
        [sys.executable, "-m", "cop_repro.cli", "fingerprints", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


DUMMY_COMMAND = """
HELP = "count to a number"


def add_arguments(parser):
    parser.add_argument("number", type=int)


def run(args):
    print(*range(args.number))
    return 7
"""


def test_a_new_command_is_one_new_file(tmp_path, monkeypatch, capsys):
    "A file dropped into the package of commands is a command; one with an underscore is none."
    shutil.copytree(ROOT / "cop_repro" / "cli", tmp_path / "copied_cli")
    (tmp_path / "copied_cli" / "count.py").write_text(DUMMY_COMMAND)
    (tmp_path / "copied_cli" / "_helper.py").write_text("raise ValueError")
    monkeypatch.syspath_prepend(tmp_path)
    copied = importlib.import_module("copied_cli")
    try:
        assert "count to a number" in copied.build_parser().format_help()
        assert copied.main(["count", "3"]) == 7
        assert capsys.readouterr().out == "0 1 2\n"
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "copied_cli"]:
            del sys.modules[name]


def test_the_parser_is_light():
    "Building it loads no library that takes seconds."
    code = (
        "import sys, cop_repro.cli as cli; cli.build_parser(); "
        "print(*{'torch', 'librosa', 'matplotlib', 'papermill', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


def test_every_command_explains_itself():
    for name, module in command_modules().items():
        assert module.HELP and "\n" not in module.HELP, name
        assert module.__doc__ and module.run.__doc__ and module.add_arguments.__doc__, name


@pytest.mark.parametrize("arguments", [("format", "--check"), ("check",)], ids=lambda a: a[0])
def test_ruff(arguments):
    "Layout and lint of modules, notebooks and tests, as pyproject.toml asks for."
    ruff = Path(sys.executable).parent / "ruff"
    command = [ruff, *arguments, "--no-cache", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_deviation_ids_exist():
    "Every D-id that a notebook cites is a row of DEVIATIONS.md."
    rows = set(re.findall(r"^\| (D-[a-z0-9-]+) \|", (ROOT / "DEVIATIONS.md").read_text(), re.M))
    cited = {
        i
        for p in LIBRARY
        for i in re.findall(
            r"\bD-[a-z][a-z0-9-]*[a-z0-9]",
            "\n".join("".join(c["source"]) for c in json.loads(p.read_text())["cells"]),
        )
    }
    assert cited <= rows, f"no row for {sorted(cited - rows)}"


def test_export_and_clean_are_fresh(tmp_path):
    "nbdev_clean and nbdev_export leave the tree as it is."
    bin_folder = Path(sys.executable).parent
    for name in ("settings.ini", "pyproject.toml", "params.yaml"):
        shutil.copy2(ROOT / name, tmp_path / name)
    for name in ("nbs", "cop_repro"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    for command in ("nbdev_clean", "nbdev_export"):
        done = subprocess.run([bin_folder / command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    changed = [
        str(p.relative_to(tmp_path))
        for p in tmp_path.rglob("*")
        if p.is_file()
        and p.suffix in (".py", ".ipynb")
        and p.read_bytes() != (ROOT / p.relative_to(tmp_path)).read_bytes()
    ]
    assert not changed, f"stale: {changed}"


def test_paper_profile_is_the_published_model():
    "The paper profile's DiT, with the base's and the piano's streams, has the published size."
    from dataclasses import replace

    import torch

    from cop_repro.core import from_dict
    from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig

    params = merge(load_params(ROOT / "params.yaml"), load_params(ROOT / "profiles" / "paper.yaml"))
    base = from_dict(DiTConfig, params["train_general"]["dit"])
    piano = replace(base, roll=from_dict(StreamConfig, params["train_piano"]["roll_stream"]))
    with torch.device("meta"):
        counts = [sum(p.numel() for p in MultiStreamDiT(c).parameters()) for c in (base, piano)]
    assert counts == [710_952_640, 789_320_312 - 12_718_424]
    variants, dpo = (
        params["train_piano"]["variants"],
        params["train_preference"]["variants"]["dpo"]["settings"],
    )
    assert {
        (
            v["predictor_share"],
            v["base_share"],
            v["joint_every"],
            v["joint_items"],
            v["heads_weight"],
        )
        for v in variants.values()
    } == {(1.0, 1.0, 1, None, 0.0)} and len(variants) == 3
    assert all(v.get("roll_source", "predicted") == "predicted" for v in variants.values()) and (
        dpo["joint_items"],
        dpo["anchor"],
        dpo["window"],
    ) == (None, 0.0, 0)
    assert params["evaluate"]["sample"] == {
        "num_steps": 64,
        "cfg_strength": 2.0,
        "roll_strength": 0.0,
        "sway": -1.0,
        "method": "euler",
        "window_s": None,
        "overlap_s": 0.64,
        "temperature": 1.0,
    }
    assert params["encode"]["max_tokens"] == 256 and params["prepare"]["keep"] == {}
    assert [
        (t["clip_norm"], t.get("decay", "linear"), t.get("ema", 0.0))
        for t in (
            params["train_general"]["train"],
            params["train_roll"]["train"],
            params["train_piano"]["train"],
        )
    ] == [(0.2, "linear", 0.0)] * 3
    strips = params["prepare"]["strip"]
    assert (strips["height"], strips["width"]) == (
        params["train_roll"]["roll"]["height"],
        params["train_roll"]["roll"]["strip_width"],
    )
    assert not [
        n
        for rows in params["evaluate"]["variants"].values()
        for n, row in rows.items()
        if row.get("model", "").startswith("../")
    ], "a shipped model reads strips of another size"


def test_plain_sections_know_their_keys():
    "What `parameters.KEYS` lists is what params.yaml has."
    params = load_params(ROOT / "params.yaml")
    for place, keys in KEYS.items():
        value = params
        for key in place.split(".") if place else ():
            value = next(iter(value.values()), None) if key == "*" else value[key]
        assert value is None or set(value) == set(keys.split()), place  # None: a table without rows
