# SPDX-License-Identifier: Apache-2.0
"VMB: attributes, sentences, retrieval, bridges of the generator, files, stage and rows."

import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest
import soundfile
import torch

from cop_repro.core import AssetMismatch, BadInput, numpy_rng, read_json, write_json
from cop_repro.data.scenes import (
    Scene,
    SceneConfig,
    SceneList,
    SceneWork,
    draw_scene,
    make_window,
    plan_scene,
    prepare_scenes,
    write_scene_list,
)
from cop_repro.data.video import write_video
from cop_repro.evaluation.bridging import (
    CONTROLS,
    GENERATED,
    BridgeSet,
    bridge_facts,
    bridge_report,
    bridge_sounds,
    bridge_table,
    paired_scores,
    row_scores,
)
from cop_repro.judges.bridges import (
    ATTRIBUTES,
    RHYTHM_BPM,
    ROOTS,
    SENTINEL,
    attributes_in,
    attributes_of,
    fit_heads,
    head_accuracy,
    make_library,
    near_duplicates,
    retrieve_clips,
    rhythm_of,
    sentence_of,
    tower_features,
)
from cop_repro.judges.extractors import Extractor
from cop_repro.judges.vmcp import VmcpConfig, make_vmcp, save_vmcp
from cop_repro.measure.visual_rhythm import VideoFeatures, scene_features
from cop_repro.model.codec import CodecConfig, make_codec, save_codec
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig, save_dit
from cop_repro.model.encoders import (
    EmbeddedSizes,
    EncodersConfig,
    WordTokenizer,
    build_encoders,
    save_encoders,
)
from cop_repro.model.flow import Conditions, SampleConfig
from cop_repro.systems.composing import (
    COMPOSED,
    COMPOSERS,
    ComposeConfig,
    SoundComposer,
    compose_for_video,
    load_composer,
)
from cop_repro.systems.contract import SystemFiles, check_system
from cop_repro.systems.vmb import (
    Bridges,
    VmbConfig,
    VmbSettings,
    averaged,
    fit_vmb,
    load_vmb,
    make_vmb,
    open_vmb,
    references_of,
    repeated,
    save_vmb,
    scene_lessons,
    vmb_step,
)
from cop_repro.training.loop import TrainConfig
from cop_repro.training.stages import Place

SIZES = DiTConfig(2, StreamConfig(16, 2, 8), text_width=12, num_registers=2)
NET = VmbConfig(copied_layers=1, tokens=3, targeted=())
LIST = SceneList(0, {}, (0, *[10] * 8, *[0] * 8))


def invented(number, tempo=None):
    "Two bars of another tune each time; even numbers have one voice, odd ones four."
    rng, step = numpy_rng(number, "tune"), (2, 4, 8)[number % 3]
    voices = 1 + 3 * (number % 2)
    rows = [
        (tick, int(rng.integers(60, 84)) - 8 * voice, step, voice)
        for tick in range(0, 32, step)
        for voice in range(voices)
    ]
    tempo = tempo or float(rng.integers(96, 132))
    return make_window(rows, 2, tempo, f"bach/{number}.mxl")


def scene(number):
    window = invented(number)
    plan = plan_scene(window, LIST, SceneConfig(coupling=1.0))
    return Scene(window, plan, scene_features(draw_scene(plan)))


@pytest.fixture(scope="module")
def scenes():
    return [scene(number) for number in range(9)]


@pytest.fixture(scope="module")
def judge():
    return make_vmcp(VmcpConfig(16, 16, 1, 2, 8)).eval()


@pytest.fixture(scope="module")
def codec():
    made = make_codec(CodecConfig(width=8, num_blocks=1, num_rounds=1))
    noise = torch.randn(2, 24_000, generator=torch.Generator().manual_seed(0))
    return made.fit_statistics([0.1 * noise]).eval()


@pytest.fixture(scope="module")
def encoders():
    sizes = EmbeddedSizes(12, 1, 2, image_dim=8, image_width=4, image_size=32)
    made = build_encoders(EncodersConfig(embedded=sizes), WordTokenizer(("music", "key")))
    return made.eval().requires_grad_(False)


def test_attributes_depend_on_everything_but_the_root():
    for number in range(6):
        window = invented(number)
        own = attributes_of(window)
        assert all(attributes_of(window.transposed(k)) == own for k in range(-5, 7))
    assert attributes_of(invented(0, 111.0))["tempo"] == "slow"
    assert attributes_of(invented(0, 112.0))["tempo"] == "fast"
    assert attributes_of(invented(0))["texture"] == "one voice"
    assert attributes_of(invented(1))["texture"] == "chords"
    apart = make_window([(0, 72, 4, 0), (4, 60, 4, 1), (8, 70, 4, 0)], 1, 100.0)
    assert attributes_of(apart)["texture"] == "several voices"
    assert attributes_of(apart)["density"] == "few" and attributes_of(apart)["strength"] == "weak"


def test_sentences_and_back():
    values = [attribute.classes for attribute in ATTRIBUTES.values()]
    for classes in itertools.product(*values):
        attributes = dict(zip(ATTRIBUTES, classes))
        assert attributes_in(sentence_of(attributes)) == attributes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"colour": "red"}, "no attribute 'colour'"),
        ({"tempoo": "slow"}, "tempo"),
        ({"tempo": "presto"}, "slow, fast"),
        ({"tempo": "slow"}, "mode, density, texture, strength are missing"),
    ],
)
def test_what_no_sentence_can_say(given, message):
    with pytest.raises(BadInput, match=message):
        sentence_of(given)


@pytest.mark.parametrize("text", ["", "a sad song", "slow music in a minor key"])
def test_what_is_no_sentence(text):
    with pytest.raises(BadInput, match="template"):
        attributes_in(text)


@pytest.mark.parametrize("bpm", [96.0, 112.0, 128.0])
def test_rhythm_finds_a_pulse(bpm):
    changes = np.zeros((250, 3))
    beats = np.arange(0, 250 / 12.5, 60 / bpm)
    changes[(beats * 12.5).astype(int)[1:]] = 1.0
    found = rhythm_of(changes.cumsum(0) % 2).reshape(-1, len(RHYTHM_BPM))[3:].mean(0)
    assert abs(RHYTHM_BPM[found.argmax()] - bpm) <= 4


def test_heads_and_the_sentinel(scenes, judge):
    rng = numpy_rng(0, "heads")
    windows = [invented(number) for number in range(240)]

    def told(window):
        made = {"still": [rng.standard_normal(4)], "motion": [], "rhythm": []}
        for name, value in attributes_of(window).items():
            classes = ATTRIBUTES[name].classes
            made[ATTRIBUTES[name].part].append(np.eye(len(classes))[classes.index(value)])
        return {part: np.concatenate(values) for part, values in made.items()}

    features = [told(window) for window in windows]
    found = head_accuracy(fit_heads(features[:160], windows[:160]), features[160:], windows[160:])
    assert min(found[name] for name in ATTRIBUTES) > 0.9 and found[SENTINEL] < 0.3
    real = tower_features(judge, VideoFeatures(**scenes[0].features))
    assert set(real) == {"still", "motion", "rhythm"}
    assert all(np.isfinite(part).all() for part in real.values())


def test_a_single_class_is_always_predicted():
    windows = [invented(number, 100.0) for number in range(0, 12, 2)]
    features = [dict.fromkeys(("still", "motion", "rhythm"), np.ones(2) * i) for i in range(6)]
    assert fit_heads(features, windows).predict(features[0])["tempo"] == "slow"


@pytest.fixture(scope="module")
def library(judge):
    return make_library(judge, [invented(number) for number in range(8)], "codec-a")


def test_retrieval_inside_partitions(library):
    vector = library.vectors[3]
    assert retrieve_clips(library, vector) == [3], "its own vector is the nearest"
    chords = retrieve_clips(library, vector, {"texture": "one voice"}, count=3)
    assert all(library.attributes[row]["texture"] == "one voice" for row in chords)
    cosines = library.vectors @ vector
    assert (
        chords == sorted(library.partition({"texture": "one voice"}), key=lambda i: -cosines[i])[:3]
    )
    for row, name in enumerate(library.names):
        assert retrieve_clips(library, vector, {"name": name}) == [row]


def test_the_own_piece_is_never_a_reference(library):
    for row, group in enumerate(library.groups):
        broad, targeted = references_of(library, library.vectors[row], {}, [group], 3)
        assert row not in broad and row not in targeted


def test_near_duplicates_share_a_group():
    tune = make_window(
        [(4 * i, p, 4, 0) for i, p in enumerate((60, 64, 62, 67, 65, 69, 60, 71, 64, 72))],
        3,
        100.0,
        "bach/a",
    )
    copy = replace(tune.transposed(2), work_id="bach/b")
    groups = near_duplicates([tune, copy, invented(2)])
    assert groups["bach/a"] == groups["bach/b"] != groups["bach/2.mxl"]
    masses = [
        replace(invented(n), kind="mass", work_id=f"palestrina/{name}.krn")
        for n, name in enumerate(("Kyrie_14_a", "Gloria_14", "Kyrie_15"))
    ]
    groups = near_duplicates(masses)
    assert groups["palestrina/Kyrie_14_a.krn"] == groups["palestrina/Gloria_14.krn"]
    assert groups["palestrina/Kyrie_15.krn"] == "palestrina/Kyrie_15.krn"


@pytest.mark.parametrize(
    ("where", "exclude", "message"),
    [
        ({"colour": "red"}, (), "no attribute 'colour'"),
        ({"mode": "dorian"}, (), "minor, major"),
        (
            {"texture": "one voice", "name": "none"},
            (),
            "texture=one voice: 4, name=none: 0; together 0 of 8",
        ),
        ({}, [f"bach/{n}.mxl" for n in range(8)], "8 groups excluded"),
    ],
)
def test_empty_partitions_are_refused_with_their_counts(library, where, exclude, message):
    with pytest.raises(BadInput, match=message):
        retrieve_clips(library, library.vectors[0], where, exclude)


def test_references_of_another_codec_are_refused(library):
    library.check_codec("codec-a")
    with pytest.raises(AssetMismatch, match="codec-a.*codec-b"):
        library.check_codec("codec-b")


def random_bridges(rng, count=2, length=12):
    yes = torch.ones(count, dtype=torch.bool)
    text, marks = torch.randn(count, 5, 12, generator=rng), torch.ones(count, 5, dtype=torch.bool)
    references = (
        torch.randn(count, length, 128, generator=rng),
        torch.randn(count, 3, 128, generator=rng),
    )
    return Bridges(text, marks, *references, yes, yes)


@torch.no_grad()
def test_a_new_vmb_is_its_parent_and_each_bridge_matters():
    rng = torch.Generator().manual_seed(0)
    parent = MultiStreamDiT(SIZES).eval()
    net, bridges = make_vmb(parent, NET).eval(), random_bridges(rng)
    xt, t = torch.randn(2, 12, 128, generator=rng), torch.tensor([0.1, 0.8])
    captions = parent(xt, t, Conditions(bridges.text, bridges.text_mask))
    assert torch.allclose(net(xt, t, bridges.without(music=True)), captions, atol=1e-6)
    silent = parent(xt, t, Conditions())
    assert torch.allclose(net(xt, t, bridges.without(text=True, music=True)), silent, atol=1e-6)
    for layer, copied in zip(parent.layers, net.dit.layers[:1]):
        assert all(
            torch.equal(a, b) for a, b in zip(layer.audio.parameters(), copied.control.parameters())
        )
    for part in net.parameters():
        part += 0.1 * torch.randn(part.shape, generator=rng)
    full = net(xt, t, bridges)
    for name in ("text", "broad", "targeted"):
        changed = replace(bridges, **{name: getattr(bridges, name) + 1.0})
        assert not torch.allclose(net(xt, t, changed), full), name
    spoilt = replace(bridges, broad=bridges.broad * torch.nan, targeted=bridges.targeted + 9.0)
    kept = net(xt, t, bridges.without(music=True))
    assert torch.equal(net(xt, t, spoilt.without(music=True)), kept)


def test_stretches_of_references():
    rows = torch.arange(5.0)[:, None]
    assert repeated(rows, 3, 7)[:, 0].tolist() == [3, 4, 0, 1, 2, 3, 4]
    assert averaged(torch.cat([rows, rows]), 2)[:, 0].tolist() == [2, 2]


def test_a_training_step_is_a_function_of_seed_and_step(scenes, judge, codec, encoders):
    settings = VmbSettings(NET, windows=1, choices=2, crop_s=0.5)
    lessons = scene_lessons(scenes[:5], judge, codec, encoders.text, settings)
    assert len(lessons.latents) == 5
    assert all(i not in (*lessons.broad[i], *lessons.targeted[i]) for i in range(5))
    cfg = TrainConfig(3, 4, 1e-3)
    step = vmb_step(make_vmb(MultiStreamDiT(SIZES), NET), lessons, settings, cfg)
    assert torch.equal(step(1, 0, 1)[0], step(1, 0, 1)[0])
    assert not torch.equal(step(1, 0, 1)[0], step(2, 0, 1)[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scenes, judge, codec, encoders):
    "All files that VMB needs."
    made = tmp_path_factory.mktemp("vmb")
    split = {scene.window.work_id: ("train", "val")[i > 5] for i, scene in enumerate(scenes)}
    judge.split_hash = "list"
    save_vmcp(made / "vmcp.safetensors", judge)
    save_codec(made / "codec.safetensors", codec)
    save_encoders(made / "encoders.safetensors", encoders, "split")
    about = {"latents": codec.latent_id, "split_hash": "split"}
    save_dit(made / "general.safetensors", MultiStreamDiT(SIZES), about)
    windows = [scene.window for scene in scenes[:7]]
    features = [tower_features(judge, VideoFeatures(**s.features)) for s in scenes[:7]]
    heads, clips = fit_heads(features, windows), make_library(judge, windows, codec.latent_id)
    works = {w: asdict(SceneWork("train", (0,), 100.0, 0)) for w in split}
    net = make_vmb(MultiStreamDiT(SIZES), NET).eval()
    save_vmb(made / "vmb.safetensors", net, heads, clips, {"scenes": "list", "works": works})
    return made


@pytest.fixture(scope="module")
def vmb(folder, scenes):
    names = ("vmb", "vmcp", "codec", "encoders")
    made = open_vmb(*(folder / f"{name}.safetensors" for name in names))
    made.windows.update({s.window.name: s.window for s in scenes[:7]})
    made.sample = SampleConfig(num_steps=1, cfg_strength=0.0, window_s=1.0, overlap_s=0.2)
    return made


def test_files(folder, vmb, tmp_path):
    net, heads, clips, meta = load_vmb(folder / "vmb.safetensors", "list")
    assert net.cfg == NET and clips.names == vmb.library.names and meta["kind"] == "vmb"
    assert np.allclose(heads.weights[SENTINEL], vmb.heads.weights[SENTINEL])
    assert len(heads.biases[SENTINEL]) == len(ROOTS)
    with pytest.raises(AssetMismatch, match="list of scenes"):
        load_vmb(folder / "vmb.safetensors", "another")
    with pytest.raises(AssetMismatch, match="not VMB"):
        load_vmb(folder / "codec.safetensors")
    other = replace(vmb.library, latents="another")
    about = {"scenes": "list", "works": {}}
    save_vmb(tmp_path / "vmb.safetensors", vmb.net, vmb.heads, other, about)
    paths = [folder / f"{name}.safetensors" for name in ("vmcp", "codec", "encoders")]
    with pytest.raises(AssetMismatch, match="encode them with the generator's codec"):
        open_vmb(tmp_path / "vmb.safetensors", *paths)


def test_reading_and_generating(vmb, scenes):
    seen = VideoFeatures(**scenes[8].features)
    reading = vmb.read(seen)
    assert attributes_in(reading.sentence) == reading.attributes
    assert vmb.read(seen, {"name": vmb.library.names[2]}).targeted == vmb.library.names[2]
    bridges = vmb.bridges(reading, 90)
    made = vmb.generate(bridges, 1)
    assert len(made) == 90 * 320 and np.array_equal(made, vmb.generate(bridges, 1))
    assert not np.array_equal(made, vmb.generate(bridges, 2))


class Fixed(Extractor):
    "Logits and windows from the level of a sound."


def extractor():
    def rows(wav):
        level = wav.reshape(-1)[:16000].reshape(4, -1).abs().mean(1)
        return torch.stack([level, -level], 1)

    return Extractor("levels", "w", 24_000, {"logits": lambda w: rows(w)[:1], "window": rows})


def test_rows_and_controls(vmb, scenes):
    test = BridgeSet.of(vmb, scenes[7:])
    made = bridge_sounds(vmb, test)
    assert set(made) == {*GENERATED, *CONTROLS}
    assert all(len(w) == len(t) for row in made.values() for w, t in zip(row, test.sounds))
    again = bridge_sounds(vmb, test, rows=("full", "shuffled"))
    assert np.array_equal(again["full"][0], made["full"][0])
    assert np.array_equal(made["other"][0][:1000], test.sounds[1][:1000])
    scores = {name: row_scores(sounds, test, extractor()) for name, sounds in made.items()}
    paired, facts = paired_scores(scores, test.works), bridge_facts(vmb, test)
    mean, low, high = paired["full - without_both"]["mel"]
    assert mean == pytest.approx(scores["full"].mel.mean() - scores["without_both"].mel.mean())
    assert low <= mean <= high
    text = bridge_report(bridge_table(scores, {}, test.works), paired, facts, {}, 2)
    for name in CONTROLS:
        assert f"| {name} | control: " in text, "a control is labelled as one"
    assert facts["inside_partition"]["targeted"] == 1.0


def test_a_scene_of_the_library_is_no_test_scene(vmb, scenes):
    with pytest.raises(AssertionError, match="among the references"):
        BridgeSet.of(vmb, scenes[6:8])


def test_leak_is_the_own_music(vmb, scenes):
    test = BridgeSet.of(vmb, scenes[7:])
    own = scenes[7].window
    admitted = replace(vmb, windows=vmb.windows | {own.name: own})
    reading = replace(test.readings[0], broad=own.name, targeted=own.name)
    sound = admitted.generate(admitted.bridges(reading, test.num_latents(0)), 0)
    assert np.array_equal(bridge_sounds(vmb, test, rows=("leak",))["leak"][0], sound)
    assert own.name not in vmb.windows, "nothing stays admitted"


def test_the_system_composes(folder, vmb, scenes):
    composer = load_composer("vmb", folder)
    assert isinstance(composer, SoundComposer) and len(composer.hashes) == 4
    composer.model.windows.update(vmb.windows)
    composer.model.sample = vmb.sample
    seen = VideoFeatures(**scenes[8].features)
    wav, reading = composer.compose(seen, 3.7, ComposeConfig())
    assert len(wav) == round(3.7 * 24_000) and reading == vmb.read(seen)
    wrong = {
        "belong to cmt": (3.7, ComposeConfig(tempo_bpm=100)),
        "3 to 600 s": (2.0, ComposeConfig()),
    }
    for message, given in wrong.items():
        with pytest.raises(BadInput, match=message):
            composer.compose(seen, *given)
    with pytest.raises(BadInput, match="no attribute"):
        ComposeConfig(where={"colour": "red"})
    with pytest.raises(BadInput, match="vmb.safetensors is missing"):
        load_composer("vmb", folder / "nowhere")
    models = tuple((name, folder / f"{name}.safetensors") for name in ("vmb", "vmcp"))
    paths = (folder / "codec.safetensors", folder / "encoders.safetensors")
    files = SystemFiles("split", *paths, models=models)
    entry = COMPOSERS["vmb"]
    assert entry.fit is fit_vmb and entry.tasks == ("composition",)
    check_system("vmb", entry.load(files, VmbSettings())[""])


def test_a_video_becomes_sound_with_its_reasons(vmb, tmp_path):
    frames = [np.full((32, 48, 3), 40, np.uint8) for _ in range(85)]
    for i, frame in enumerate(frames):
        frame[:, (2 * i) % 40 : (2 * i) % 40 + 8] = 220
    write_video(tmp_path / "clip.mp4", frames, 25.0)
    out, cfg = tmp_path / "out", ComposeConfig(seed=1, where={"name": vmb.library.names[0]})
    files = compose_for_video(tmp_path / "clip.mp4", out, SoundComposer(vmb), cfg)
    assert {p.name for p in out.iterdir()} == set(files) == {*COMPOSED} - {"notes.mid"}
    wav, rate = soundfile.read(out / "sound.wav")
    assert rate == 24_000 and len(wav) == round(3.4 * rate) and abs(wav).max() > 0.1
    report = read_json(out / "report.json")
    assert report["system"] == "vmb" and report["targeted"] == vmb.library.names[0]
    assert attributes_in(report["sentence"]) == report["attributes"]
    still = [frames[0]] * 85
    write_video(tmp_path / "still.mp4", still, 25.0)
    with pytest.raises(BadInput, match="nothing moves"):
        compose_for_video(tmp_path / "still.mp4", tmp_path / "b", SoundComposer(vmb))
    assert not (tmp_path / "b").exists()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Four chorales as scenes, and where a stage would train."
    made = tmp_path_factory.mktemp("scenes")
    names = {"bach/bwv156.6.mxl": "val", "bach/bwv416.mxl": "train", "bach/bwv394.mxl": "train"}
    names["bach/bwv108.6.mxl"] = "train"
    works = {n: SceneWork(s, (0,), 112.0, 0) for n, s in sorted(names.items())}
    listed = SceneList(0, works, LIST.density_counts)
    write_json(made / "list.json", write_scene_list(listed))
    prepare_scenes(made, listed, ("train", "val"), scene_features)
    stores = {"scenes": made, "scene_list": made / "list.json"}
    return Place(stores, made / "scratch", made / "made.safetensors"), listed.split_hash


def test_vmb_is_fitted_on_training_scenes(place, folder, tmp_path):
    place, scenes = place
    own = make_vmcp(VmcpConfig(16, 16, 1, 2, 8)).eval()
    own.split_hash = scenes
    save_vmcp(tmp_path / "vmcp.safetensors", own)
    paths = {name: folder / f"{name}.safetensors" for name in ("codec", "encoders", "general")}
    models = (("general", paths["general"]), ("vmcp", tmp_path / "vmcp.safetensors"))
    files = SystemFiles(scenes, paths["codec"], paths["encoders"], models=models)
    settings = VmbSettings(NET, windows=1, choices=1, crop_s=0.5)
    cfg = TrainConfig(2, 2, 1e-3, report_every=1)
    trained = fit_vmb(place, settings, cfg, files)
    assert trained.result.step == 2 and 0 <= trained.measured["key_root_accuracy"] <= 1
    net, _, clips, meta = load_vmb(place.made, scenes)
    assert len(clips) == 3 and set(meta["works"]) == {n.rpartition("@")[0] for n in clips.names}
    assert "bach/bwv156.6.mxl" not in meta["works"], "validation works cannot be retrieved"
    opened = open_vmb(place.made, tmp_path / "vmcp.safetensors", paths["codec"], paths["encoders"])
    assert opened.window(clips.names[0]).name == clips.names[0], "read from the installed corpus"
    goes_on = replace(files, models=(*models, ("start", place.made)))
    again = replace(place, scratch=place.scratch / "b", made=tmp_path / "again.safetensors")
    fit_vmb(again, settings, cfg, goes_on)
    assert not torch.equal(load_vmb(again.made)[0].reference.weight, net.reference.weight)
    with pytest.raises(AssetMismatch, match="the parameters ask for"):
        fit_vmb(again, replace(settings, net=VmbConfig(2, 3, ())), cfg, goes_on)
