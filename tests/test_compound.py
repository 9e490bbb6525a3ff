# SPDX-License-Identifier: Apache-2.0
"Compound tokens, linear attention, the published size, and controls that are inputs only."

import numpy as np
import pytest
import torch

from cop_repro.core import AssetMismatch, BadInput, save_weights, torch_rng
from cop_repro.model.compound import (
    BAR,
    BEAT,
    DENSITY,
    DURATION,
    INSTRUMENT,
    METRE,
    NOTE,
    PITCH,
    PUBLISHED,
    STRENGTH,
    TYPE,
    VOCABULARY,
    Composing,
    CompoundConfig,
    CompoundTransformer,
    Controls,
    Draw,
    attention_step,
    collate,
    compose,
    compound_loss,
    decode_music,
    encode_music,
    linear_attention,
    load_compound,
    make_music,
    make_prefix,
    nucleus_probabilities,
    sample_class,
    save_compound,
    token_ticks,
    unigram_loss,
)

TINY = CompoundConfig(16, 1, 2, 32, (4, 4, 4, 8, 4, 4, 4), 4, 4, dropout=0.0)


def some_music(seed, num_bars=4):
    "Random music in three voices, with a bar that may be empty."
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 40)
    ticks = rng.integers(0, 16 * num_bars, count)
    pitches = rng.integers(21, 109, count)
    durations = np.minimum(rng.integers(1, 17, count), 16 * num_bars - ticks)
    return make_music(ticks, pitches, durations, rng.integers(1, 4, count), num_bars)


def untrained(seed=0, cfg=TINY):
    torch.manual_seed(seed)
    return CompoundTransformer(cfg).eval()


def asked(*density, strength=()):
    wanted = np.zeros(16 * len(density), np.int64)
    for tick, notes in strength:
        wanted[tick] = notes
    return Controls(np.array(density), wanted)


def test_golden_bar():
    "Ticks 0 with two notes and 4 with one: Bar(d3) Beat0(d2,s2) n n Beat4(d1,s1) n end."
    rows = encode_music(make_music([0, 0, 4], [60, 64, 67], [4, 4, 4], [1, 1, 1], 1))
    assert rows[:, TYPE].tolist() == [METRE, METRE, NOTE, NOTE, METRE, NOTE, 0]
    assert rows[:, BEAT].tolist() == [BAR, 1, 0, 0, 5, 0, 0]
    assert rows[:, DENSITY].tolist() == [3, 2, 0, 0, 1, 0, 0]
    assert rows[:, STRENGTH].tolist() == [0, 2, 0, 0, 1, 0, 0]
    assert rows[:, PITCH].tolist() == [0, 0, 61, 65, 0, 68, 0]


def test_golden_densities():
    music = make_music([0, 0, 4, 8, 8, 8, 16, 20, 24, 28], [60] * 10, [4] * 10, [1] * 10, 2)
    assert len(music) == 7, "the same note at the same tick and voice is one note"
    rows = encode_music(music)
    assert (rows[rows[:, BEAT] == BAR, DENSITY] - 1).tolist() == [3, 4]


@pytest.mark.parametrize("seed", range(8))
def test_decoding_inverts_encoding_and_reads_no_control(seed):
    music = some_music(seed)
    rows = encode_music(music)
    assert decode_music(rows) == music
    assert (rows.max(0) < VOCABULARY).all() and rows.min() >= 0
    other = rows.copy()
    other[:, [DENSITY, STRENGTH]] = np.random.default_rng(seed).integers(0, 18, (len(rows), 2))
    assert decode_music(other) == music


@pytest.mark.parametrize("seed", range(8))
def test_density_counts_down_in_every_bar(seed):
    rows = encode_music(some_music(seed))
    metre = rows[rows[:, TYPE] == METRE]
    starts = np.flatnonzero(metre[:, BEAT] == BAR)
    for first, last in zip(starts, [*starts[1:], len(metre)]):
        left = metre[first:last, DENSITY]
        assert left.tolist() == list(range(left[0], left[0] - len(left), -1))
        assert left[-1] == 1, "no onset is left at the end of a bar"


def test_ticks_of_tokens():
    music = some_music(3)
    rows = encode_music(music)
    ticks = token_ticks(rows)
    assert (np.diff(ticks) >= 0).all() and ticks[-1] == 16 * music.num_bars
    at = ticks[rows[:, TYPE] == NOTE]
    assert at.tolist() == music.ticks.tolist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0.5], [60], [4], [1]), "16 ticks a bar"),
        (([16], [60], [4], [1]), "16 ticks a bar"),
        (([0], [20], [4], [1]), "pitches"),
        (([0], [109], [4], [1]), "pitches"),
        (([0], [60], [0], [1]), "durations"),
        (([0], [60], [4], [4]), "voices"),
        (([0], [float("nan")], [4], [1]), "pitches"),
        (([0, 1], [60], [4], [1]), "one length"),
    ],
)
def test_music_off_the_grid_is_refused(columns, message):
    with pytest.raises(BadInput, match=message) as error:
        make_music(*columns, 1)
    assert "\n" not in str(error.value)


def test_a_crowded_tick_is_refused():
    music = make_music([0] * 20, range(40, 60), [1] * 20, [1] * 20, 1)
    with pytest.raises(BadInput, match="at most 19"):
        encode_music(music)
    with pytest.raises(BadInput, match="begin with a bar"):
        decode_music(encode_music(some_music(0))[1:])


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_parallel_attention_equals_the_recurrent_one(length):
    q, k, v = (torch.randn(2, 2, length, 8, generator=torch_rng(0, n)) for n in "qkv")
    whole = linear_attention(q, k, v)
    state = torch.zeros(2, 2, 8, 8), torch.zeros(2, 2, 8)
    for i in range(length):
        out, state = attention_step(q[:, :, i], k[:, :, i], v[:, :, i], state)
        assert torch.allclose(out, whole[:, :, i], atol=1e-5)


def test_attention_is_causal_to_the_last_bit():
    q, k, v = (torch.randn(1, 2, 150, 8, generator=torch_rng(1, n)) for n in "qkv")
    k2, v2 = k.clone(), v.clone()
    k2[:, :, 70:], v2[:, :, 70:] = 5.0, -100.0
    same = linear_attention(q, k2, v2)[:, :, :70]
    assert torch.equal(same, linear_attention(q, k, v)[:, :, :70])


def test_network_in_both_forms():
    model, rows = untrained(), encode_music(some_music(1))
    batch = collate([rows], [make_prefix(2, [1, 3])])
    with torch.no_grad():
        whole = model(batch.prefix, batch.rows, batch.ticks, batch.progress)
        hidden, state = model.start(batch.prefix)
        steps = [hidden]
        for i in range(len(rows)):
            token = batch.rows[:, i], batch.ticks[:, i], batch.progress[:, i]
            hidden, state = model.step(*token, state)
            steps.append(hidden)
    assert torch.allclose(whole, torch.stack(steps, 1), atol=1e-5)


@pytest.mark.parametrize(("cfg", "size"), [(PUBLISHED, 39_006_324), (CompoundConfig(), 882_620)])
def test_sizes(cfg, size):
    with torch.device("meta"):
        assert sum(p.numel() for p in CompoundTransformer(cfg).parameters()) == size


def test_loss_is_the_masked_mean():
    "Against cross-entropies computed token by token; padding and order do not matter."
    model, pieces = untrained(), [encode_music(some_music(i)) for i in (1, 2)]
    prefixes = [make_prefix(1), make_prefix(3, [2])]
    loss, parts = compound_loss(model, collate(pieces, prefixes))
    total, count = np.zeros(7), 0
    for rows, prefix in zip(pieces, prefixes):
        alone = collate([rows], [prefix])
        hidden = model(
            prefix[None], *(x[:, :-1] for x in (alone.rows, alone.ticks, alone.progress))
        )
        logits = model.field_logits(hidden, alone.rows[..., TYPE])
        for i, x in enumerate(logits):
            chosen = torch.log_softmax(x[0], -1)[torch.arange(len(rows)), rows[:, i]]
            total[i] -= chosen.sum().item()
        count += len(rows)
    assert np.allclose(list(parts.values()), total / count, atol=1e-4)
    assert loss.item() == pytest.approx(np.mean(total / count), abs=1e-4)
    far = collate([*pieces, encode_music(some_music(5, 8))], [*prefixes, make_prefix(1)])
    cut = type(far)(**{n: v if v is None else v[:2] for n, v in vars(far).items()})
    assert compound_loss(model, cut)[0].item() == pytest.approx(loss.item(), abs=1e-5)


def test_gradient_reaches_every_weight():
    model = untrained(cfg=CompoundConfig(16, 1, 2, 32, (4, 4, 4, 8, 4, 4, 4), 4, 4, 0.0, 5))
    rows = encode_music(some_music(1))
    batch = collate([rows], [make_prefix(1)], [np.ones((len(rows) + 1, 5))])
    compound_loss(model, batch)[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def conditioned():
    torch.manual_seed(0)
    return CompoundTransformer(CompoundConfig(16, 1, 2, 32, (4, 4, 4, 8, 4, 4, 4), 4, 4, 0.0, 5))


def test_a_condition_is_read_with_the_prefix_and_in_both_forms():
    model, rows = conditioned().eval(), encode_music(some_music(1))
    given = np.random.default_rng(0).standard_normal((len(rows) + 1, 5))
    batch = collate([rows], [make_prefix(2)], [given])
    with torch.no_grad():
        whole = model(batch.prefix, batch.rows, batch.ticks, batch.progress, batch.condition)
        hidden, state = model.start(batch.prefix, batch.condition[:, 0])
        steps = [hidden]
        for i in range(len(rows)):
            token = batch.rows[:, i], batch.ticks[:, i], batch.progress[:, i]
            hidden, state = model.step(*token, state, batch.condition[:, i + 1])
            steps.append(hidden)
    assert torch.allclose(whole, torch.stack(steps, 1), atol=1e-5)
    given[0] += 1
    other = collate([rows], [make_prefix(2)], [given])
    with torch.no_grad():
        changed = model(other.prefix, other.rows, other.ticks, other.progress, other.condition)
    assert not torch.allclose(whole[:, 0], changed[:, 0], atol=1e-3), "before the first token"


def test_weight_of_whole_bars():
    "Only the densities of bar tokens count more, by hand."
    model, rows = untrained(), encode_music(some_music(1))
    batch = collate([rows], [make_prefix(1)])
    (plain, parts), (heavy, more) = (compound_loss(model, batch, w) for w in (1.0, 5.0))
    with torch.no_grad():
        hidden = model(
            batch.prefix, *(x[:, :-1] for x in (batch.rows, batch.ticks, batch.progress))
        )
        logits = model.field_logits(hidden, batch.rows[..., TYPE])[DENSITY][0]
    bars = rows[:, BEAT] == BAR
    nats = -torch.log_softmax(logits, -1)[torch.arange(len(rows)), rows[:, DENSITY]]
    extra = 4 * nats[torch.from_numpy(bars)].sum().item() / len(rows)
    assert more["density"] == pytest.approx(parts["density"] + extra, abs=1e-4)
    assert heavy.item() == pytest.approx(plain.item() + extra / 7, abs=1e-4)


def test_guidance_moves_rhythm_and_no_pitches():
    "With equal conditions it changes nothing; with others, the same draws give another rhythm."
    model, controls = conditioned().eval(), Controls.none(4)
    given, null = torch.ones(5), -torch.ones(5)

    def made(condition, guidance, seed=0):
        how = Composing(0.0, (1,), guidance=guidance)
        rng = torch_rng(seed, "guided")
        return compose(model, make_prefix(0, (1,)), controls, how, rng, None, lambda _: condition)

    plain = made(given, 0.0)
    assert np.array_equal(made(torch.stack([given, given]), 5.0), plain)
    assert np.array_equal(made(torch.stack([given, null]), 0.0), plain)
    changed = [made(torch.stack([given, null]), 8.0, seed) for seed in range(3)]
    assert any(
        not np.array_equal(rows[:5, :3], made(given, 0.0, seed)[:5, :3])
        for seed, rows in enumerate(changed)
    )
    with pytest.raises(BadInput, match="guidance"):
        Composing(guidance=-1.0)


def test_the_strongest_visual_beats_keep_the_onsets_of_a_bar():
    "Three beats and two onsets: the weakest request goes; no other beat comes in between."
    strength = np.zeros(16, np.int64)
    strength[[2, 6, 12]] = 4, 2, 3
    controls, how = Controls(np.array([2]), strength), Composing(1.0, (1,))
    for seed in range(6):
        rows = compose(untrained(seed), make_prefix(1, [1]), controls, how, torch_rng(seed, "s"))
        beats = rows[(rows[:, TYPE] == METRE) & (rows[:, BEAT] != BAR)]
        assert beats[:2, BEAT].tolist() == [3, 13] and beats[:2, STRENGTH].tolist() == [4, 3]


def test_unigram_loss_of_one_class_per_type():
    rows = encode_music(make_music([0, 16], [60, 60], [4, 4], [1, 1], 2))
    many = [rows] * 1000
    bits = unigram_loss(many, [rows], given_type=True)
    assert bits < unigram_loss(many, [rows])
    types = np.bincount(rows[:, TYPE]) / len(rows)
    entropy = -(types * np.log(types)).sum()
    rest = -0.75 * 0 + sum(
        -np.log(np.mean(rows[rows[:, TYPE] == t][:, i] == v)) / len(rows)
        for i in (BEAT, DENSITY, STRENGTH)
        for t, v in rows[:, [TYPE, i]].tolist()
    )
    assert bits == pytest.approx((entropy + rest) / 7, abs=0.02)


def test_nucleus():
    logits = torch.log(torch.tensor([0.6, 0.25, 0.1, 0.05]))
    kept = nucleus_probabilities(logits, Draw(1.0, 0.8))
    assert kept.tolist() == pytest.approx([0.6 / 0.85, 0.25 / 0.85, 0, 0])
    hot = nucleus_probabilities(logits, Draw(2.0, 1.0))
    roots = np.sqrt([0.6, 0.25, 0.1, 0.05])
    assert hot.tolist() == pytest.approx((roots / roots.sum()).tolist())
    allowed = torch.tensor([False, True, False, True])
    draws = [sample_class(logits, allowed, Draw(1, 1), torch_rng(0, "d", i)) for i in range(300)]
    assert set(draws) == {1, 3}
    assert np.mean(np.array(draws) == 1) == pytest.approx(0.25 / 0.3, abs=0.07)


@pytest.mark.parametrize("seed", range(4))
def test_a_piece_is_well_formed_whatever_the_weights(seed):
    controls = asked(3, 0, 16, -1, strength=[(5, 4), (40, 19)])
    how = Composing(1.0, (1, 3))
    rows = compose(untrained(seed), make_prefix(0, (1, 3)), controls, how, torch_rng(seed, "p"))
    music = decode_music(rows)
    assert music.num_bars == 4 and set(music.voices) <= {1, 3}
    ticks = token_ticks(rows)
    metre = rows[:, TYPE] == METRE
    beats = metre & (rows[:, BEAT] != BAR)
    assert (np.diff(ticks[beats]) > 0).all(), "beats go forwards"
    after = rows[np.flatnonzero(beats) + 1]
    assert (after[:, TYPE] == NOTE).all(), "every beat has a note"
    notes = rows[rows[:, TYPE] == NOTE]
    assert (notes[:, [PITCH, DURATION, INSTRUMENT]] > 0).all()


def test_controls_are_inputs_and_not_notes():
    "Requests stand in the tokens, yet an untrained model does not play them."
    controls, made = asked(*[16, 1] * 4), []
    for seed in range(6):
        how = Composing(1.0, (1,))
        rows = compose(untrained(seed), make_prefix(1, [1]), controls, how, torch_rng(seed, "p"))
        bars = rows[rows[:, BEAT] == BAR]
        assert (bars[:, DENSITY] - 1).tolist() == controls.density.tolist()
        music = decode_music(rows)
        made.append(np.bincount(np.unique(music.ticks) // 16, minlength=8))
    error = abs(np.array(made) - controls.density).mean() / controls.density.mean()
    assert error > 0.5


def test_without_control_requests_change_nothing():
    model, prefix = untrained(1), make_prefix(1)
    pieces = [
        compose(model, prefix, controls, Composing(0.0), torch_rng(0, "free"))
        for controls in (asked(16, 16), asked(0, 3, strength=[(3, 9)]), Controls.none(2))
    ]
    bars = [rows[rows[:, BEAT] == BAR, DENSITY].tolist() for rows in pieces]
    assert bars[0] != [17, 17], "an uncontrolled model chooses its own densities"
    strengths = pieces[1][pieces[1][:, BEAT] == 4, STRENGTH]
    assert 9 not in strengths


def test_a_visual_beat_becomes_a_beat_with_its_strength():
    controls = asked(16, 16, strength=[(6, 7), (21, 5)])
    rows = compose(untrained(2), make_prefix(1), controls, Composing(1.0), torch_rng(0, "v"))
    ticks = token_ticks(rows)
    for tick, strength in ((6, 7), (21, 5)):
        here = rows[(ticks == tick) & (rows[:, TYPE] == METRE) & (rows[:, BEAT] != BAR)]
        assert here[:, STRENGTH].tolist() == [strength]


def test_a_made_bar_counts_down():
    "Inputs are those of training: from the density of the bar, one fewer with each beat."
    controls = asked(5, 2, 0, 9)
    rows = compose(untrained(6), make_prefix(1), controls, Composing(1.0), torch_rng(0, "r"))
    metre = rows[rows[:, TYPE] == METRE]
    starts = np.flatnonzero(metre[:, BEAT] == BAR)
    assert metre[starts, DENSITY].tolist() == [6, 3, 1, 10]
    for first, last in zip(starts, [*starts[1:], len(metre)]):
        left = metre[first:last, DENSITY].tolist()
        assert left == [max(1, left[0] - i) for i in range(len(left))]


@pytest.mark.parametrize("seed", range(4))
def test_a_visual_beat_takes_one_of_the_onsets_of_its_bar(seed):
    "Four visual beats in a bar of one onset: no more than one of them is forced."
    wanted = [(4 * i, 19) for i in range(16)]
    controls, how = asked(1, 1, 1, 1, strength=wanted), Composing(1.0, (1,))
    forced = compose(untrained(seed), make_prefix(1), controls, how, torch_rng(seed, "f"))
    beats = forced[(forced[:, TYPE] == METRE) & (forced[:, BEAT] != BAR)]
    first = np.concatenate([[True], np.diff(beats[:, BEAT]) <= 0])
    assert first.sum() <= 4
    free = beats[~first]
    assert not (free[:, STRENGTH] == 19).all() or not len(free)
    assert (beats[first, STRENGTH] == 19).any()


def test_chance_of_control_is_tested_for_each_event():
    controls, followed = asked(*[16] * 8), []
    for seed in range(12):
        rows = compose(
            untrained(3), make_prefix(1, [1]), controls, Composing(0.5, (1,)), torch_rng(seed, "c")
        )
        bars = rows[rows[:, BEAT] == BAR, DENSITY]
        followed.append((bars == 17).tolist())
    share = np.mean(followed)
    assert 0.3 < share < 0.8
    assert any(0 < sum(piece) < 8 for piece in followed), "within one piece, not once for all"


def test_a_context_is_kept_and_closed():
    model, how = untrained(4), Composing(1.0, (1,))
    prefix = make_prefix(1, [1])
    first = compose(model, prefix, asked(2, 2), how, torch_rng(0, "a"))
    rows = compose(model, prefix, asked(2, 2, 2), how, torch_rng(0, "b"), first[:-1])
    assert np.array_equal(rows[: len(first) - 1], first[:-1])
    assert rows[len(first) - 1, BEAT] == BAR, "the bars of a context are over"
    again = compose(model, prefix, asked(2, 2, 2), how, torch_rng(0, "b"), first[:-1])
    assert np.array_equal(again, rows)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Controls(np.array([3]), np.zeros(15, np.int64)),
        lambda: asked(17),
        lambda: asked(3, strength=[(0, 20)]),
        lambda: Composing(1.5),
        lambda: make_prefix(7),
        lambda: CompoundTransformer(CompoundConfig(width=100, heads=8)),
        lambda: compose(
            untrained(), make_prefix(), Controls.none(0), Composing(), torch_rng(0, "x")
        ),
    ],
)
def test_wrong_requests_are_one_line(wrong):
    with pytest.raises(BadInput) as error:
        wrong()
    assert "\n" not in str(error.value)


def test_files(tmp_path):
    model = untrained(5)
    save_compound(tmp_path / "a.safetensors", model, {"kind": "x"})
    again, meta = load_compound(tmp_path / "a.safetensors")
    assert meta["kind"] == "x" and again.config == TINY
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    save_weights(tmp_path / "b.safetensors", {"w": torch.zeros(1)}, {})
    with pytest.raises(AssetMismatch, match="no compound-word transformer"):
        load_compound(tmp_path / "b.safetensors")
