# SPDX-License-Identifier: Apache-2.0
"""The site that `cop docs` builds: its preparation, its pages, and how a browser shows them.

The preparation needs no Sphinx. The whole site is built once a test run; a browser shows it with
the network refused. Without Sphinx or Chromium the tests that need them are skipped.
"""

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess

import pytest
from filelock import FileLock

from cop_repro.cli import _site, docs, main
from cop_repro.core import BadInput, CopError

needs_sphinx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in docs.NEEDED),
    reason="the docs extra is not installed",
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-sync "
    "--disable-component-update --no-first-run --virtual-time-budget=6000 --enable-logging=stderr"
)
NO_NETWORK = ("--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND")


def code(source, **metadata):
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": f"c{abs(hash(source)) % 10**6}",
        "metadata": metadata,
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }


def markdown(source):
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": source}


def write_notebook(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook))


@pytest.fixture
def small(tmp_path):
    "A repository of a few pages, two layers and one stage."
    root = tmp_path / "repository"
    (root / "docs").mkdir(parents=True)
    (root / "docs" / "cards").mkdir()
    (root / "docs" / "cards" / "README.md").write_text("# Cards\n")
    (root / "reports").mkdir()
    (root / "README.md").write_text(
        "# Small\n[notes](nbs/data/10_notes.ipynb#a-key), [settings](params.yaml), [folder](nbs), "
        "[cards](docs/cards), [sound](reports/a.ogg), [web](https://example.org)\n\n![picture](reports/a.png)\n"
    )
    (root / "LICENSES.md").write_text("# What may be used\n[home](README.md)\n")
    (root / "docs" / "guide.md").write_text(
        "# Guide\n[home](../README.md) [tables](../reports/tables.md)\n\n"
        '<audio controls src="../reports/a.ogg"></audio>\n'
    )
    (root / "reports" / "tables.md").write_text("# Tables\n")
    (root / "reports" / "a.png").write_bytes(b"\x89PNG")
    (root / "reports" / "a.ogg").write_bytes(b"Ogg\xff\xfe")
    (root / "params.yaml").write_text("seed: 1\n")
    nbs = root / "nbs"
    write_notebook(nbs / "00_core.ipynb", markdown("# Core\n> What is shared."))
    write_notebook(
        nbs / "data" / "10_notes.ipynb",
        code("#| default_exp data.notes"),
        markdown(
            "# Notes\n> When keys\n> are struck.\n\n"
            "See [flow](../model/42_flow.ipynb).\n\n## A key\n"
        ),
        code("#| hide\nimport secret"),
        code("#| export\ndef played():\n    'Struck keys.'\n\n\nclass Key:\n    pass"),
        code("played()"),
    )
    write_notebook(nbs / "data" / "9_early.ipynb", markdown("# Early\n> First."))
    write_notebook(nbs / "model" / "42_flow.ipynb", markdown("# Flow\n> Lines."))
    write_notebook(nbs / "course" / "01_listen.ipynb", markdown("# Listening\n> Sounds."))
    write_notebook(nbs / "stages" / "encode.ipynb", markdown("# Encode\n"))
    return root


@pytest.fixture
def prepared(small, tmp_path):
    pages = _site.prepare(small, tmp_path / "source", tmp_path / "extra")
    return [str(page.relative_to(small)) for page in pages], tmp_path / "source"


def cells_of(source, name):
    cells = json.loads((source / name).read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells], cells


def test_cells_without_directives(prepared):
    texts, cells = cells_of(prepared[1], "nbs/data/10_notes.ipynb")
    assert not [text for text in texts if "#|" in text]
    assert not [text for text in texts if "secret" in text], "a hidden cell is shown"
    exported = [i for i, cell in enumerate(cells) if "exported" in cell["metadata"].get("tags", [])]
    assert len(exported) == 1
    assert texts[exported[0]].startswith("def played():")
    assert texts[exported[0] - 1].count("{index} !single:") == 2
    assert "!single: played; cop_repro.data.notes" in texts[exported[0] - 1]
    assert texts[-1] == "played()"


def test_module_is_named_below_the_subtitle(prepared):
    title = cells_of(prepared[1], "nbs/data/10_notes.ipynb")[0][0]
    assert re.match(
        r"# Notes\n> When keys\n> are struck\.\n\n\*Notebook `nbs/data/10_notes.ipynb`;.*"
        r"`cop_repro\.data\.notes`\.\*\n\nSee",
        title,
    )


@pytest.mark.parametrize("comment", ["#| export", "#|export", "# | export", "#| export name"])
def test_spellings_of_a_directive(comment):
    assert _site.strip_directives(f"{comment}\nx = 1  #| export")[0] == "x = 1  #| export"
    assert list(_site.strip_directives(comment)[1]) == ["export"]


def test_formulas_are_joined():
    text = "so\n$$a = b\n+ c$$\nand $x\n- y$, `$HOME\\n`\n\n```sh\n$a\n+ $b\n```\n$p\n\n$q"
    joined = text.replace("b\n+", "b +").replace("x\n-", "x -")
    assert _site.join_formulas(text) == joined


def test_links_hold_in_the_site(prepared):
    names, source = prepared
    home = (source / "index.md").read_text("utf-8")
    assert "[notes](nbs/data/10_notes.ipynb#a-key)" in home
    folders = "folder, [cards](docs/cards/README.md)"
    assert f"[settings](params.yaml.md), {folders}, [sound](reports/a.ogg)" in home
    assert "[web](https://example.org)" in home
    assert (source / "reports" / "a.png").exists() and (source / "reports" / "a.ogg").exists()
    assert "(../model/42_flow.ipynb)" in cells_of(source, "nbs/data/10_notes.ipynb")[0][0]
    guide = (source / "docs" / "guide.md").read_text("utf-8")
    assert "[home](../index.md) [tables](../reports/tables.md)" in guide
    assert "yaml\nseed: 1\n" in (source / "params.yaml.md").read_text("utf-8")
    assert "params.yaml" in names and "nbs/stages/encode.ipynb" not in names


def test_embedded_sound_lies_where_its_page_expects_it(small, prepared, tmp_path):
    assert (tmp_path / "extra" / "reports" / "a.ogg").read_bytes() == b"Ogg\xff\xfe"
    (small / "reports" / "a.ogg").unlink()
    with pytest.raises(BadInput, match="guide.md embeds ../reports/a.ogg"):
        _site.prepare(small, tmp_path / "source", tmp_path / "extra")


def test_a_named_notebook_is_linked(small, tmp_path):
    names = "`nbs/data/10_notes`, `42_flow`, [`42_flow`](nbs/model/42_flow.ipynb), `77_none`"
    (small / "README.md").write_text(f"# Small\n{names}\n")
    _site.prepare(small, tmp_path / "source", tmp_path / "extra")
    text = (tmp_path / "source" / "index.md").read_text("utf-8")
    flow = "[`42_flow`](nbs/model/42_flow.ipynb)"
    notes = "[`nbs/data/10_notes`](nbs/data/10_notes.ipynb)"
    assert f"{notes}, {flow}, {flow}, `77_none`\n" in text


def test_a_link_to_nothing_stays(small, tmp_path):
    (small / "README.md").write_text("# Small\n[gone](gone.md) and `x[0](y)`\n")
    _site.prepare(small, tmp_path / "source", tmp_path / "extra")
    text = (tmp_path / "source" / "index.md").read_text("utf-8")
    assert "[gone](gone.md) and `x[0](y)`" in text


def test_reading_order(prepared):
    home = (prepared[1] / "index.md").read_text("utf-8")
    order = ["docs/guide", "00 Core <nbs/00_core>", "nbs/data/index", "nbs/model/index"]
    order += ["nbs/course/index", "genindex", "reports/tables", "Licenses <LICENSES>"]
    places = [home.index(f"{name}\n" if "<" in name else name, 200) for name in order]
    assert places == sorted(places)
    data = (prepared[1] / "nbs" / "data" / "index.md").read_text("utf-8")
    assert data.startswith("# Data\n") and data.index("9_early") > data.index("10_notes")
    assert "- [10 Notes](10_notes.ipynb): When keys are struck." in data
    assert "10 Notes <10_notes>" in data


def test_guides_in_the_order_of_the_readme(small):
    for name in ("a", "b", "cards/x", "cards/README"):
        (small / "docs" / f"{name}.md").write_text("# Page\n")
    with (small / "README.md").open("a") as readme:
        readme.write("\n[guide](docs/guide.md#start) and [b](docs/b.md)\n")
    pages = _site.markdown_pages(small)
    assert [page.stem for page in pages["Guides"]] == ["guide", "b", "a"]
    assert [page.stem for page in pages["Cards"]] == ["README", "x"]


def test_a_notebook_without_a_title_is_refused(small, tmp_path):
    write_notebook(small / "nbs" / "data" / "11_none.ipynb", markdown("Prose."))
    with pytest.raises(BadInput, match="11_none.ipynb has no title"):
        _site.prepare(small, tmp_path / "source", tmp_path / "extra")


def test_every_layer_has_a_place(root):
    folders = {path.parent for path in _site.library_notebooks(root / "nbs")} - {root / "nbs"}
    assert {folder.name for folder in folders} <= set(_site.LAYERS)


def test_without_sphinx(monkeypatch, capsys):
    monkeypatch.setattr(docs.importlib.util, "find_spec", lambda name: None)
    assert main(["docs"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "install the docs extra" in error


@pytest.mark.parametrize("failure", [CopError("faulty"), KeyboardInterrupt()])
def test_a_failed_build_leaves_the_old_site(small, monkeypatch, capsys, failure):
    def build(config, work):
        (work / "html").mkdir()
        raise failure

    (small / "_docs").mkdir()
    (small / "_docs" / "index.html").write_text("old")
    monkeypatch.setattr(docs, "NEEDED", ())
    monkeypatch.setattr(docs, "project_root", lambda: small)
    monkeypatch.setattr(docs, "build", build)
    assert main(["docs"]) in (2, 130)
    assert [p.name for p in (small / "_docs").iterdir()] == ["index.html"]
    assert (small / "_docs" / "index.html").read_text("utf-8") == "old"


@needs_sphinx
def test_faulty_pages_stop_the_build(root, tmp_path, capfd):
    (tmp_path / "source").mkdir()
    (tmp_path / "extra").mkdir()
    faults = "[gone](gone.md)", "[place](#nowhere)", "![picture](no.png)", r"$\nosuch{x}$"
    (tmp_path / "source" / "index.md").write_text("\n\n".join(["# Home", *faults]) + "\n")
    with pytest.raises(CopError, match="faulty pages"):
        docs.build(root / "docs", tmp_path)
    complaints = capfd.readouterr().err
    for name in ("gone.md", "nowhere", "no.png", "nosuch"):
        assert name in complaints


@needs_sphinx
def test_linked_files_are_in_the_site(root, small, tmp_path):
    _site.prepare(small, tmp_path / "source", tmp_path / "extra")
    docs.build(root / "docs", tmp_path)
    site = tmp_path / "html"
    assert 'src="../reports/a.ogg"' in (site / "docs" / "guide.html").read_text("utf-8")
    assert (site / "reports" / "a.ogg").read_bytes() == b"Ogg\xff\xfe"
    home = (site / "index.html").read_text("utf-8")
    assert re.search(r'href="_downloads/\w+/a.ogg"', home)
    assert 'href="params.yaml.html"' in home and 'href="nbs/data/10_notes.html#a-key"' in home
    assert '<span class="nt">seed</span>' in (site / "params.yaml.html").read_text("utf-8")


@pytest.fixture(scope="session")
def site(root, tmp_path_factory, worker_id):
    "The whole site; workers share one build."
    base = tmp_path_factory.getbasetemp()
    work = (base if worker_id == "master" else base.parent) / "site"
    with FileLock(f"{work}.lock"):
        if not (work / "complete").exists():
            _site.prepare(root, work / "source", work / "extra")
            docs.build(root / "docs", work)
            (work / "complete").touch()
    return work / "html"


def pages_of(site):
    return [path for path in sorted(site.rglob("*.html")) if not path.name.startswith("probe")]


def search_index(site):
    text = (site / "searchindex.js").read_text("utf-8")
    return json.loads(text[text.index("(") + 1 : text.rindex(")")])


@needs_sphinx
def test_every_page_is_built(root, site):
    for notebook in _site.library_notebooks(root / "nbs"):
        assert (site / notebook.relative_to(root).with_suffix(".html")).exists()
    for name in ("index", "search", "genindex", "ARCHITECTURE", "nbs/model/index"):
        assert (site / f"{name}.html").exists()
    assert not (site / "nbs" / "stages").exists()


@needs_sphinx
def test_search_knows_every_public_function(root, site):
    from cop_repro._modidx import d

    known = search_index(site)["indexentries"]
    names = {name.split(".")[-1] for syms in d["syms"].values() for name in syms if name}
    public = {name.lower() for name in names if not name.startswith("_")}
    functions = public & set(known)
    assert {"fm_loss", "read_midi", "conditions"} <= functions
    assert len(functions) > 300
    assert any("draw_noise_and_tim" in term for term in search_index(site)["terms"])


@needs_sphinx
def test_nothing_comes_from_a_network(site):
    for page in pages_of(site):
        for tag in re.findall(
            r"<(?:link|script|img|source|audio|video|iframe)\b[^>]*>", page.read_text("utf-8")
        ):
            assert not re.search(r"""(?:src|href|srcset)=["']?(?:https?:)?//""", tag), (page, tag)
    for style in site.rglob("*.css"):
        found = re.search(
            r"""(?:url\(|@import)\s*["']?(?:https?:)?//[^)]*""", style.read_text("utf-8")
        )
        assert not found, (style, found)
    assert not [path for path in site.rglob("*.js") if "cdn.jsdelivr" in path.read_text("utf-8")]


@needs_sphinx
def test_pages_show_no_markup(site):
    for page in pages_of(site):
        text = page.read_text("utf-8")
        assert not re.search(r"#\s*\|\s*(export|hide|default_exp)", re.sub("<[^>]*>", "", text)), (
            page
        )
        body = text[text.index('<article role="main"') : text.index("</article>")] * (
            "<article" in text
        )
        prose = re.sub(r"(?s)<(pre|code|math|script|style)\b.*?</\1>", "", body)
        prose = re.sub("<[^>]*>", "", prose)
        assert "$" not in prose and not re.search(r"\\[a-z]{2}|!\[|\]\(", prose), page


@needs_sphinx
def test_local_links_have_a_target(site):
    for page in pages_of(site):
        for href in re.findall(
            r'<(?:a|img|link|script)\b[^>]*?(?:href|src)="([^"#?:]+)["#?]', page.read_text("utf-8")
        ):
            assert (page.parent / href).exists(), f"{page.name} -> {href}"


@needs_sphinx
def test_outputs_and_colours_are_there(site):
    page = (site / "nbs" / "data" / "10_notes.html").read_text("utf-8")
    assert page.count("<img ") > 1 and "tag_exported" in page
    assert '<span class="k">def</span>' in page


PROBE = """<script>
function widths(selector) {
  const shown = e => e.checkVisibility() && !e.closest("details:not([open])");
  const all = [...document.querySelectorAll(selector)];
  return all.filter(shown).map(e => e.getBoundingClientRect().width);
}
function measure() {
  const root = document.documentElement;
  const facts = {
    case: window.name,
    width: root.clientWidth,
    scroll: Math.max(root.scrollWidth, document.body.scrollWidth),
    formulas: widths("math"),
    font: document.fonts.check("16px 'Site Math'"),
    found: [...document.querySelectorAll("#search-results a")].map(a => a.getAttribute("href")),
  };
  parent.postMessage(JSON.stringify(facts), "*");
}
addEventListener("load", () => setTimeout(measure, 1500));
</script>"""
FRAMES = """<body><script>
addEventListener("message", event => {
  const line = document.createElement("pre");
  line.textContent = event.data;
  document.body.append(line);
});
</script>"""
LOOKED_AT = [
    *(("nbs/model/42_flow", width) for width in (390, 1100, 1184, 1280, 1400, 1500)),
    *((name, 390) for name in ("index", "genindex", "ARCHITECTURE", "nbs/data/10_notes")),
    ("search", 1000),
]


@pytest.fixture(scope="session")
def browser(site, tmp_path_factory):
    "What a browser without a network measures on pages in windows of some widths, and its console."
    folder = tmp_path_factory.mktemp("browser")
    frames, probes = FRAMES, []
    for name, width in LOOKED_AT:
        page = site / f"{name}.html"
        probe = page.with_name(f"probe-{os.getpid()}-{page.name}")
        probe.write_text(page.read_text("utf-8").replace("</body>", f"{PROBE}</body>"))
        probes.append(probe)
        url = f"{probe.as_uri()}?q=draw_noise_and_time"
        frames += (
            f'<iframe name="{name} {width}" src="{url}" width="{width}" height="900"></iframe>'
        )
    (folder / "frames.html").write_text(frames)
    command = [CHROMIUM, *QUIET.split(), *NO_NETWORK, f"--user-data-dir={folder / 'profile'}"]
    command += ["--dump-dom", (folder / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    for probe in set(probes):
        probe.unlink()
    facts = [
        json.loads(html.unescape(line)) for line in re.findall("<pre>(.*?)</pre>", done.stdout)
    ]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return {tuple(fact["case"].split()): fact for fact in facts}, console


@needs_sphinx
@needs_browser
def test_pages_fit_every_window(browser):
    facts, console = browser
    assert not console, console
    for name, width in LOOKED_AT:
        fact = facts[name, str(width)]
        assert fact["scroll"] <= fact["width"] <= width, f"{name} at {width} pixels"


@needs_sphinx
@needs_browser
def test_formulas_are_typeset(browser):
    fact = browser[0]["nbs/model/42_flow", "390"]
    assert len(fact["formulas"]) > 50 and min(fact["formulas"]) > 3
    assert fact["font"], "the font of the formulas was not loaded"


@needs_sphinx
@needs_browser
def test_search_finds_a_function(browser):
    found = browser[0]["search", "1000"]["found"]
    assert len(found) > 1
    assert "nbs/model/42_flow.html" in found[0]
