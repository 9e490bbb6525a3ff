# SPDX-License-Identifier: Apache-2.0
"Encoders: pretrained formats, the embedded asset, and what must be refused."

import json

import open_clip
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from cop_repro.core import (
    AssetMismatch,
    BadInput,
    DatasetMissing,
    load_weights,
    save_weights,
    torch_rng,
)
from cop_repro.model.encoders import (
    OPENCLIP_CONFIG,
    OPENCLIP_PICKLE,
    OPENCLIP_WEIGHTS,
    EmbeddedSizes,
    EncodersBatch,
    EncodersConfig,
    EncodersTrainer,
    PretrainedSources,
    build_encoders,
    contrastive_loss,
    convert_openclip,
    encoders_step,
    fit_square,
    learn_words,
    load_encoders,
    load_openclip,
    load_t5,
    log_mel,
    save_encoders,
    seeded,
    upsample_nearest,
)
from cop_repro.model.flow import to_latent_rate

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}
SMALL = EncodersConfig(
    embedded=EmbeddedSizes(text_dim=32, image_dim=32, image_width=4, max_tokens=16, image_size=32)
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    "A tiny encoder-decoder in FLAN-T5's hub format: config, safetensors, fast tokenizer."
    folder = tmp_path_factory.mktemp("t5")
    with seeded(0, "t5"):
        cfg = transformers.T5Config(
            vocab_size=40,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
        transformers.T5ForConditionalGeneration(cfg).save_pretrained(folder)
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"),
    ]
    words = Tokenizer(models.Unigram(pieces, unk_id=2))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    "A tiny CLIP in OpenCLIP's hub format."
    folder = tmp_path_factory.mktemp("clip")
    with seeded(0, "clip"):
        clip = open_clip.CLIP(**TINY_CLIP)
    save_weights(folder / OPENCLIP_WEIGHTS[0], clip.state_dict(), {})
    (folder / OPENCLIP_CONFIG).write_text(
        json.dumps(
            {
                "model_cfg": TINY_CLIP,
                "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
            }
        )
    )
    return folder


def small_batch(count=6, index=0):
    rng = torch_rng(0, "batch", index)
    frames = torch.randint(0, 256, (count, 20, 40, 3), dtype=torch.uint8, generator=rng)
    names = [f"thing {i % 3}" for i in range(count)]
    return EncodersBatch(
        frames,
        [f"a {n}" for n in names],
        names,
        log_mel(0.1 * torch.randn(count, 9600, generator=rng)),
        [f"{n} falls" for n in names],
        names,
    )


def test_real_interface_on_tiny_weights(t5_folder, clip_folder):
    cfg = EncodersConfig(
        kind="real", pretrained=PretrainedSources(text=str(t5_folder), image=str(clip_folder))
    )
    encoders = load_encoders(None, cfg)
    text, mask = encoders.text.encode(["the sound of rain", "a"])
    assert (
        text.shape == (2, 19, 32)
        and mask.sum(1).tolist() == [19, 3]
        and text[1, 3:].abs().sum() == 0
    )
    image = encoders.image.encode(torch.zeros(2, 3, 20, 40, 3, dtype=torch.uint8), chunk=4)
    assert image.shape == (2, 3, 16) and encoders.image.mean.tolist() == pytest.approx(
        [0.1, 0.2, 0.3]
    )
    assert not any(p.requires_grad for p in encoders.parameters()) and not encoders.training


def test_a_saved_real_encoder_is_its_source(t5_folder, clip_folder, tmp_path):
    cfg = EncodersConfig(
        kind="real",
        image_fit="crop",
        pretrained=PretrainedSources(text=str(t5_folder), image=str(clip_folder)),
    )
    save_encoders(tmp_path / "e.safetensors", load_encoders(None, cfg), "a" * 16)
    again = load_encoders(tmp_path / "e.safetensors", split_hash="a" * 16)
    assert (
        again.cfg == cfg
        and again.text.encode(["a"])[0].shape == (1, 3, 32)
        and load_weights(tmp_path / "e.safetensors")[0] == {}
    )
    with pytest.raises(AssetMismatch, match="kind"):
        load_encoders(tmp_path / "e.safetensors", EncodersConfig())


def test_t5_agrees_with_transformers(t5_folder):
    whole = transformers.T5ForConditionalGeneration.from_pretrained(t5_folder).eval()
    encoder = load_t5(PretrainedSources(text=str(t5_folder)))
    ids, mask = encoder.tokenize(["rain falls"])
    with torch.no_grad():
        expected = whole.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert torch.allclose(encoder.encode(["rain falls"])[0], expected, atol=1e-6)


def test_loading_leaves_the_global_generator_alone(t5_folder, clip_folder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_encoders(SMALL, learn_words(["a"]))
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_weights_name_what_and_how():
    with pytest.raises(DatasetMissing, match="3.1 GB, Apache-2.0.*hf download"):
        load_t5(PretrainedSources(text="nowhere/at-all"))
    with pytest.raises(DatasetMissing, match="10.2 GB, MIT.*hf download"):
        load_openclip(PretrainedSources(image="nowhere/at-all"))


def test_another_kind_of_model_is_refused(t5_folder, clip_folder, tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(AssetMismatch, match="'bert' model"):
        load_t5(PretrainedSources(text=str(tmp_path)))
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_weights(tmp_path / OPENCLIP_WEIGHTS[0], {"visual.conv1.weight": torch.zeros(3)}, {})
    with pytest.raises(AssetMismatch, match="does not hold the image tower"):
        load_openclip(PretrainedSources(image=str(tmp_path)))
    (tmp_path / OPENCLIP_WEIGHTS[0]).write_bytes(b"not weights")
    with pytest.raises(AssetMismatch, match="image tower"):
        load_openclip(PretrainedSources(image=str(tmp_path)))


def test_a_t5_without_some_weights_is_refused(t5_folder, tmp_path):
    for file in t5_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors, _ = load_weights(tmp_path / "model.safetensors")
    fewer = {k: v for k, v in tensors.items() if "encoder.block.1" not in k}
    from safetensors.torch import save_file

    save_file(fewer, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AssetMismatch, match="lacks"):
        load_t5(PretrainedSources(text=str(tmp_path)))


def test_pickled_openclip_is_converted_once(clip_folder, tmp_path):
    (tmp_path / OPENCLIP_CONFIG).write_bytes((clip_folder / OPENCLIP_CONFIG).read_bytes())
    tensors, _ = load_weights(clip_folder / OPENCLIP_WEIGHTS[0])
    torch.save(tensors, tmp_path / OPENCLIP_PICKLE)
    with pytest.raises(DatasetMissing, match="convert_openclip"):
        load_openclip(PretrainedSources(image=str(tmp_path)))
    convert_openclip(tmp_path)
    frames = torch.randint(
        0, 256, (1, 2, 32, 32, 3), dtype=torch.uint8, generator=torch_rng(0, "frames")
    )
    one, two = (
        load_openclip(PretrainedSources(image=str(folder))).encode(frames)
        for folder in (clip_folder, tmp_path)
    )
    assert torch.equal(one, two)


def test_asset_round_trip_and_mismatches(tmp_path):
    encoders, path = (
        build_encoders(SMALL, learn_words(["rain falls"]), seed=3).eval(),
        tmp_path / "e.safetensors",
    )
    save_encoders(path, encoders, "a" * 16, note="test")
    again = load_encoders(path, SMALL, "a" * 16)
    assert (
        again.text.encode(["rain, snow"])[0] - encoders.text.encode(["rain, snow"])[0]
    ).abs().max() < 0.02
    assert load_weights(path)[1]["note"] == "test" and not any(
        p.requires_grad for p in again.parameters()
    )
    tensors, meta = load_weights(path)
    for wrong in (
        {k: v for k, v in tensors.items() if "conv1" not in k},
        tensors | {"more": torch.zeros(1)},
    ):
        save_weights(path, wrong, meta)
        with pytest.raises(AssetMismatch, match="tensors are missing"):
            load_encoders(path)
    save_weights(path, tensors, meta)
    with pytest.raises(AssetMismatch, match="image_fit"):
        load_encoders(path, EncodersConfig(image_fit="crop", embedded=SMALL.embedded))
    with pytest.raises(AssetMismatch, match="split"):
        load_encoders(path, SMALL, "b" * 16)
    with pytest.raises(BadInput, match="does not exist"):
        load_encoders(tmp_path / "gone.safetensors")


def test_step_is_pure_and_reaches_every_kept_parameter():
    trainer = EncodersTrainer(SMALL, learn_words(["a thing falls"]))
    optimizer = torch.optim.Adam(trainer.parameters(), lr=1e-3)
    # CLIP's residual branches start at zero: only the second step has gradients inside them.
    for step in range(2):
        loss, logs = encoders_step(trainer, small_batch(), torch_rng(0, "step", step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    idle = [
        n for n, p in trainer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert idle == []
    trainer.eval()
    with torch.no_grad():
        values = [
            float(encoders_step(trainer, small_batch(), torch_rng(s, "step"))[0]) for s in (1, 1, 2)
        ]
    assert values[0] == values[1] != values[2] and set(logs) == {
        "image_loss",
        "sound_loss",
        "redraw",
    }


def test_several_positives_by_hand():
    a = torch.eye(2)
    both = contrastive_loss(a, a, torch.ones(2, 2, dtype=torch.bool), 2.0)
    own = contrastive_loss(a, a, torch.eye(2, dtype=torch.bool), 2.0)
    log_weights = torch.log_softmax(torch.tensor([2.0, 0.0]), 0)
    assert own == pytest.approx(-float(log_weights[0]), abs=1e-6) and both == pytest.approx(
        -float(log_weights.mean()), abs=1e-6
    )


def test_letterbox_keeps_every_column_crop_eleven_percent():
    strip = torch.zeros(52, 50, 460, 3, dtype=torch.uint8)
    for key in range(52):
        strip[key, :, round(key * 460 / 52) : round((key + 1) * 460 / 52)] = 255
    dark = torch.zeros(1, 50, 460, 3, dtype=torch.uint8)
    seen = {
        fit: int(
            (
                (fit_square(strip, 56, fit) - fit_square(dark, 56, fit)).abs().flatten(1).amax(1)
                > 0.2
            ).sum()
        )
        for fit in ("letterbox", "crop")
    }
    assert seen["letterbox"] == 52 and 5 <= seen["crop"] <= 8


@pytest.mark.parametrize("frame_rate, count", [(25, 250), (30, 300), (29.97, 300), (12.5, 125)])
def test_upsampling_covers_the_clip_in_order(frame_rate, count):
    index = upsample_nearest(torch.arange(count)[None, :, None].float(), frame_rate, 75, 750)[
        0, :, 0
    ]
    if frame_rate == 25:
        assert torch.equal(
            index, to_latent_rate(torch.arange(250.0)[None, :, None], 750)[0, :, 0]
        )  # the same clock as model.flow
    assert (
        index[0] == 0
        and count - 2 <= index[-1] <= count - 1
        and set(index.diff().tolist()) <= {0.0, 1.0}
    )
