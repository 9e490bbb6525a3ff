# SPDX-License-Identifier: Apache-2.0
"Extractors: real networks with tiny weights, parity with their libraries, refused mixtures."

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from cop_repro.core import AssetMismatch, BadInput, DatasetMissing, load_weights, save_weights
from cop_repro.data.foley import foley_clip, t2a_clip
from cop_repro.judges.extractors import (
    Extractor,
    Features,
    comparable,
    embedded_extractor,
    id_list_hash,
    set_score,
    set_scores,
)
from cop_repro.judges.networks import JudgeSizes, load_judges, make_judges, save_judges
from cop_repro.judges.pretrained import load_extractor
from cop_repro.measure import audio_metrics as m
from cop_repro.model.encoders import learn_words, seeded

TINY = JudgeSizes(width=4, embedding=8, joint=16, image_size=32, vision_width=32, text_width=32)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    path = tmp_path_factory.mktemp("judges") / "judges.safetensors"
    save_judges(path, make_judges(TINY, learn_words(["a bell rings"]), ["bell", "knock"]), "split")
    return path


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory):
    "A tiny CLAP as on the hub: config, safetensors, feature extractor, tokenizer."
    folder = tmp_path_factory.mktemp("clap")
    text = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "projection_dim": 12,
        "pad_token_id": 1,
    }
    audio = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "window_size": 4,
        "num_classes": 3,
        "projection_dim": 12,
        "enable_fusion": False,
    }
    with seeded(0, "clap"):
        transformers.ClapModel(
            transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
        ).save_pretrained(folder)
    transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16_000,
        hop_length=160,
        max_length_s=2,
        fft_window_size=1024,
        frequency_min=50,
        frequency_max=8000,
        truncation="rand_trunc",
        padding="repeatpad",
    ).save_pretrained(folder)
    words = Tokenizer(
        models.WordLevel(
            {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "bell": 4, "rain": 5}, unk_token="<unk>"
        )
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ast_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ast")
    cfg = transformers.ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_length=64,
        num_mel_bins=16,
        num_labels=5,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
    )
    with seeded(0, "ast"):
        transformers.ASTForAudioClassification(cfg).save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=64).save_pretrained(folder)
    return folder


WAVS = [t2a_clip(i, 2.0).wav for i in range(3)]


def test_clap_is_transformers_own(clap_folder):
    extractor = load_extractor("clap", clap_folder)
    assert extractor.sample_rate == 16_000 and extractor.provenance.startswith("CLAP ")
    sounds, captions = (
        extractor("audio", "abc", WAVS),
        extractor("text", "abc", ["bell", "rain", "bell"]),
    )
    assert sounds.values.shape == (3, 12) and np.allclose(
        np.linalg.norm(sounds.values, axis=1), 1, rtol=1e-6, atol=1e-6
    )
    assert (captions.values[0] == captions.values[2]).all() and not np.allclose(
        captions.values[0], captions.values[1]
    )
    model, words = (
        transformers.ClapModel.from_pretrained(clap_folder),
        transformers.AutoTokenizer.from_pretrained(clap_folder),
    )
    with torch.inference_mode():
        out = model.get_text_features(**words(["bell"], return_tensors="pt"))
    out = (out if isinstance(out, torch.Tensor) else out.pooler_output)[0].double().numpy()
    np.testing.assert_allclose(captions.values[0], out / np.linalg.norm(out), atol=1e-6)
    score = set_score("clap_score", captions, sounds)
    assert (
        score.value == pytest.approx(m.clap_score(captions.values, sounds.values), abs=1e-12)
        and score.n == 3
    )


def test_ast_is_transformers_own(ast_folder):
    extractor = load_extractor("ast", ast_folder)
    logits = extractor("logits", "abc", WAVS)
    assert logits.values.shape == (3, 5) and extractor("clip", "abc", WAVS).values.shape == (3, 16)
    score = set_scores(extractor, ["kl", "inception_score", "fd"], list("abc"), WAVS, WAVS)
    assert (
        [s.value for s in score[:1]] == [0]
        and score[2].value < 1e-9
        and score[1].value == pytest.approx(m.inception_score(logits.values))
    )


def test_vggish_through_its_package(tmp_path):
    from torchvggish import torchvggish, vggish_input

    with seeded(0, "vggish"):
        net = torchvggish.VGG(torchvggish.make_layers(), postprocess=False).eval()
    save_weights(tmp_path / "vggish.safetensors", net.state_dict(), {})
    extractor = load_extractor("vggish", tmp_path / "vggish.safetensors")
    wav = np.pad(WAVS[0], (0, 10))
    windows = extractor("window", ["a"], [wav])
    level = torch.from_numpy(
        np.asarray((wav - wav.mean()) * (0.5 / np.abs(wav - wav.mean()).max()), np.float32)
    )
    import torchaudio

    examples = vggish_input.waveform_to_examples(
        torchaudio.functional.resample(level, 24_000, 16_000).double().numpy(), 16_000
    ).float()
    with torch.inference_mode():
        other = net(examples)
    assert windows.values.shape == (2, 128)
    np.testing.assert_allclose(windows.values, other.numpy(), rtol=1e-5, atol=1e-6)
    save_weights(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(AssetMismatch):
        load_extractor("vggish", tmp_path / "other.safetensors")


def _other_package(name: str, module: str):
    "A module of a package that is not required; its __init__, which may fetch files, is not run."
    import importlib
    import importlib.util
    import sys
    import types

    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip(f"{name} is not installed (not a requirement)")
    sys.modules.setdefault(name, types.ModuleType(name)).__path__ = list(
        spec.submodule_search_locations
    )
    return importlib.import_module(f"{name}.{module}")


SOUND = torch.from_numpy(t2a_clip(5, 4.0).wav[:64_000])


@pytest.mark.filterwarnings("ignore")
def test_panns_agrees_with_the_released_code(tmp_path):
    models = _other_package("panns_inference", "models")
    with seeded(0, "cnn14"):
        net = models.Cnn14(32_000, 1024, 320, 64, 50, 14_000, 527).eval()
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    save_weights(tmp_path / "cnn14.safetensors", net.state_dict(), {})
    extractor = load_extractor("panns", tmp_path / "cnn14.safetensors")
    with torch.inference_mode():
        theirs = net(SOUND[None])
    np.testing.assert_allclose(
        extractor.kinds["clip"](SOUND).numpy(), theirs["embedding"].numpy(), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        extractor.kinds["logits"](SOUND).sigmoid().numpy(),
        theirs["clipwise_output"].numpy(),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.filterwarnings("ignore")
def test_wav2clip_agrees_with_the_released_code():
    encoder = _other_package("wav2clip", "model.encoder")
    from cop_repro.judges.pretrained import Wav2Clip

    with seeded(0, "wav2clip"):
        net = encoder.ResNetExtractor(scenario="supervise")
        net.transform = encoder.MLPLayers()
    tensors = {f"audio_encoder.{k}": v for k, v in net.encoder.state_dict().items()} | {
        f"audio_transform.{k}": v for k, v in net.transform.state_dict().items()
    }
    with torch.inference_mode():
        np.testing.assert_allclose(
            Wav2Clip(tensors).eval()(SOUND).numpy(),
            net.eval()(SOUND[None]).numpy(),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.filterwarnings("ignore")
def test_passt_through_its_package(tmp_path):
    pytest.importorskip("hear21passt", reason="not a requirement")
    from hear21passt.models import passt, preprocess

    with seeded(0, "passt"):
        net = passt.PaSST(
            img_size=(128, 998),
            patch_size=16,
            stride=(10, 10),
            num_classes=7,
            embed_dim=64,
            depth=1,
            num_heads=1,
            distilled=True,
        )
    save_weights(tmp_path / "passt.safetensors", net.state_dict(), {})
    extractor = load_extractor("passt", tmp_path / "passt.safetensors")
    logits, clip = (extractor.kinds[k](SOUND) for k in ("logits", "clip"))
    mel = preprocess.AugmentMelSTFT(fmin_aug_range=10, fmax_aug_range=2000).eval()
    with torch.inference_mode():
        theirs = net.eval()(mel(SOUND[None])[:, None])
    assert logits.shape == (1, 7) and clip.shape == (1, 64)
    for ours, other in zip((logits, clip), theirs):
        np.testing.assert_allclose(ours.numpy(), other.numpy(), rtol=1e-4, atol=1e-6)
    save_weights(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(AssetMismatch):
        load_extractor("passt", tmp_path / "other.safetensors")


def test_clip_of_open_clip(tmp_path):
    "Captions and pictures are open_clip's own; another space than Wav2CLIP's is refused."
    import open_clip

    small = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 28,
            "layers": 1,
            "width": 64,
            "head_width": 32,
            "patch_size": 14,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    with seeded(0, "openclip"):
        clip = open_clip.CLIP(**small).eval()
    save_weights(tmp_path / "open_clip_model.safetensors", clip.state_dict(), {})
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": small, "preprocess_cfg": {}})
    )
    extractor = load_extractor("openclip", tmp_path)
    frames = np.random.default_rng(0).integers(0, 255, (2, 28, 28, 3)).astype(np.uint8)
    mean, std = (
        torch.tensor(x)[:, None, None]
        for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.inference_mode():
        pictures = clip.encode_image(
            (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - mean) / std, normalize=True
        ).numpy()
        captions = clip.encode_text(
            open_clip.SimpleTokenizer(context_length=16)(["a bell rings"]), normalize=True
        ).numpy()
    np.testing.assert_allclose(
        extractor("image", ["a"], [frames]).values, pictures, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        extractor("text", ["a"], ["a bell rings"]).values, captions, rtol=1e-5, atol=1e-6
    )
    with pytest.raises(BadInput, match="needs another extractor"):
        extractor("audio", ["a"], WAVS[:1])
    save_weights(
        tmp_path / "open_clip_model.safetensors",
        {k: v for k, v in clip.state_dict().items() if k.startswith("visual.")},
        {},
    )
    assert set(load_extractor("openclip", tmp_path).kinds) == {"image"}


def test_a_pickle_is_read_once_and_never_by_an_extractor(tmp_path):
    "Only tensors are converted; a pickle that runs code is refused; extractors refuse all."
    from cop_repro.cli import main

    torch.save({"iteration": 3, "model": {"fc1.weight": torch.ones(2, 2)}}, tmp_path / "net.pth")
    with pytest.raises((BadInput, AssetMismatch)):
        load_extractor("panns", tmp_path / "net.pth")
    assert main(["weights", "convert", str(tmp_path / "net.pth")]) == 0
    assert load_weights(tmp_path / "net.safetensors")[0]["fc1.weight"].sum() == 4
    with pytest.raises(AssetMismatch, match="PANNs"):
        load_extractor("panns", tmp_path / "net.safetensors")

    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    assert (
        main(["weights", "convert", str(tmp_path / "evil.pth")]) == 2
        and not (tmp_path / "evil.safetensors").exists()
    )
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    assert (
        main(["weights", "convert", str(tmp_path / "none.pth")]) == 2
        and main(["weights", "convert", str(tmp_path / "nowhere.pth")]) == 2
    )


@pytest.mark.parametrize(
    "kind", ["clap", "ast", "vggish", "panns", "passt", "openclip", "wav2clip"]
)
def test_missing_networks(kind, tmp_path):
    with pytest.raises(DatasetMissing):
        load_extractor(kind, tmp_path / "none")
    with pytest.raises(BadInput, match="no extractor"):
        load_extractor("unknown", tmp_path)


def test_mixtures_are_refused(judges):
    extractor = embedded_extractor(judges, "split")
    clip = extractor("clip", "abc", WAVS)
    other = Features(clip.values, clip.ids, "clip", "another network", clip.sample_rate)
    for wrong, error in (
        (other, AssetMismatch),
        (Features(clip.values, clip.ids, "clip", clip.extractor, 48_000), AssetMismatch),
        (extractor("logits", "abc", WAVS), AssetMismatch),
        (extractor("clip", "abd", WAVS), BadInput),
        (extractor("clip", "ab", WAVS[:2]), BadInput),
    ):
        with pytest.raises(error):
            comparable(clip, wrong)
        with pytest.raises(error):
            set_score("fd", clip, wrong)
    with pytest.raises(AssetMismatch):
        set_score("kl", clip, clip)
    with pytest.raises(BadInput):
        set_score("beauty", clip, clip)
    with pytest.raises(BadInput):
        set_score("fd", None, clip)


def test_set_scores_are_the_arithmetic(judges):
    extractor, noisy = (
        embedded_extractor(judges),
        [w + 0.05 * rng(i).normal(size=len(w)) for i, w in enumerate(WAVS)],
    )
    by = {
        s.metric: s
        for s in set_scores(
            extractor,
            ["fad", "fd", "kid", "kl"],
            list("abc"),
            WAVS,
            noisy,
            {"a": 0, "b": 0, "c": 1},
        )
    }
    rows = {
        k: [extractor(k, "abc", side).values for side in (WAVS, noisy)]
        for k in ("window", "clip", "logits")
    }
    for name, value in (
        ("fad", m.frechet_distance(*rows["window"])),
        ("fd", m.frechet_distance(*rows["clip"])),
        ("kid", m.kid(*rows["clip"])),
        ("kl", m.kl(*rows["logits"])),
    ):
        assert (
            by[name].value == pytest.approx(value, rel=1e-9)
            and by[name].ids == id_list_hash("cba")
            and by[name].ci_low <= by[name].value <= by[name].ci_high
        )


def test_order_of_clips_does_not_matter(judges):
    extractor, noisy = embedded_extractor(judges), [w[::-1].copy() for w in WAVS]
    forward, back = (
        set_scores(
            extractor, ["fad", "kl"], ids, [WAVS[i] for i in order], [noisy[i] for i in order]
        )
        for ids, order in (("abc", (0, 1, 2)), ("cba", (2, 1, 0)))
    )
    for a, b in zip(forward, back):
        assert a.value == pytest.approx(b.value, rel=1e-9) and a.ids == b.ids


def test_videos_and_captions(judges):
    extractor = embedded_extractor(judges)
    made = [foley_clip("bell ring", i, 2.5) for i in range(2)]
    scores = set_scores(
        extractor,
        ["clip_score", "clap_score"],
        ["a", "b"],
        None,
        [c.wav for c in made],
        texts=["a bell rings"] * 2,
        videos=[c.frames for c in made],
    )
    frames, sounds = (
        [extractor("image", ["x"], [c.frames[::30]]).values for c in made],
        extractor("audio", "ab", [c.wav for c in made]).values,
    )
    assert (
        scores[0].value == pytest.approx(m.clip_score(sounds, frames, every=1), rel=1e-9)
        and -1 <= scores[1].value <= 1
    )
    for lacking in (
        {"texts": None, "videos": [c.frames for c in made]},
        {"texts": ["a"] * 2, "videos": None},
    ):
        with pytest.raises(BadInput, match="none were given"):
            set_scores(
                extractor,
                ["clip_score", "clap_score"],
                ["a", "b"],
                None,
                [c.wav for c in made],
                **lacking,
            )


def test_a_judge_that_diverges(judges):
    bad = Extractor("bad", "0", 16_000, {"clip": lambda wav: torch.full((1, 3), float("nan"))})
    with pytest.raises(BadInput, match="'b'|'a'"):
        bad("clip", "ab", WAVS[:2])
    with pytest.raises(BadInput, match="no clip"):
        bad("clip", [], [])
    with pytest.raises(ValueError):
        bad("clip", "abc", WAVS[:2])


def test_assets_are_checked(judges, tmp_path):
    tensors, meta = load_weights(judges)
    for change, said in (
        ({"format": "x"}, "format"),
        ({"sizes": {**meta["sizes"], "width": 8}}, "size mismatch|another version"),
        ({"words": meta["words"] + ["one"]}, "another version"),
    ):
        save_weights(tmp_path / "j.safetensors", tensors, {**meta, **change})
        with pytest.raises(AssetMismatch, match=said):
            load_judges(tmp_path / "j.safetensors")
    with pytest.raises(AssetMismatch, match="split"):
        load_judges(judges, "another")
    assert json.loads(json.dumps(meta))["classes"] == ["bell", "knock"]


def test_shipped_judges_recognise_new_sounds(root):
    "Sounds of seeds that are in neither the judges' clips nor the corpus."
    path = root / "data" / "assets" / "judges.safetensors"
    if not path.is_file():
        pytest.skip("the judges are not among the assets")
    assert path.stat().st_size < 3_000_000
    extractor, judge = embedded_extractor(path), load_judges(path)
    kinds = (
        "ball bounce",
        "hammer strike",
        "bell ring",
        "water drop",
        "engine rev",
        "string pluck",
    )
    made = [foley_clip(kind, 77_000 + i, 4.0) for i, kind in enumerate(kinds)]
    found = extractor("logits", kinds, [c.wav for c in made]).values.argmax(1)
    assert sum(judge.classes[j] == kind for j, kind in zip(found, kinds)) >= 4
    sounds, captions = (
        extractor("audio", kinds, [c.wav for c in made]).values,
        extractor("text", kinds, [f"the sound of {k}" for k in kinds]).values,
    )
    similarity = sounds @ captions.T
    assert np.diag(similarity).mean() > similarity[~np.eye(6, dtype=bool)].mean() + 0.2


def test_several_rows_of_a_clip_are_averaged():
    "Clips with several rows are paired by clip, not by row."
    values = rng(3).normal(size=(6, 4))
    ids = tuple("aabbcc")
    for metric, kinds in (
        ("kl", ("logits", "logits")),
        ("clap_score", ("text", "audio")),
        ("clip_score", ("image", "audio")),
    ):
        several = [
            Features(values + shift, ids, kind, "judge 00", 16_000)
            for kind, shift in zip(kinds, (0, rng(4).normal(size=(6, 4))))
        ]
        means = [
            Features(
                f.values.reshape(3, 2, 4).mean(1), tuple("abc"), f.kind, f.extractor, f.sample_rate
            )
            for f in several
        ]
        made, expected = set_score(metric, *several), set_score(metric, *means)
        assert (
            made.n == 3
            and made.per_clip == pytest.approx(expected.per_clip, rel=1e-8)
            and made.value == pytest.approx(expected.value, rel=1e-12)
        )
    other = Features(
        np.concatenate([values[:1], values]), tuple("aaabbcc"), "logits", "judge 00", 16_000
    )  # other row counts: still one value a clip
    assert set_score("kl", Features(values, ids, "logits", "judge 00", 16_000), other).n == 3


def test_clap_of_long_sounds_is_the_mean_of_whole_windows(clap_folder):
    extractor = load_extractor("clap", clap_folder)
    embed, long = (
        extractor.kinds["audio"],
        torch.cat([SOUND, SOUND.flip(0)])[: 5 * 16_000],
    )  # the model's window is 2 s
    parts = [embed(long[s : s + 32_000]) for s in (0, 24_000, 48_000)]
    np.testing.assert_allclose(
        embed(long).numpy(),
        torch.nn.functional.normalize(torch.stack(parts).mean(0), dim=-1).numpy(),
        rtol=1e-6,
        atol=1e-7,
    )
    assert (embed(long) == embed(long)).all()
    changed = long.clone()
    changed[-8_000:] *= -0.5
    assert not torch.allclose(embed(changed), embed(long), atol=1e-7)


def test_ast_covers_what_follows_its_window(ast_folder):
    extractor, window = load_extractor("ast", ast_folder), (63 * 10 + 25) * 16  # 64 frames of 10 ms
    long = SOUND[: 3 * window]
    for kind in ("clip", "logits"):
        embed = extractor.kinds[kind]
        parts = [embed(long[i * window : (i + 1) * window]) for i in range(3)]
        np.testing.assert_allclose(
            embed(long).numpy(), torch.stack(parts).mean(0).numpy(), rtol=1e-6, atol=1e-7
        )
        assert (
            not torch.allclose(parts[2], parts[0], atol=1e-6)
            and (embed(long[:window]) == parts[0]).all()
        )
