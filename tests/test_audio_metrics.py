# SPDX-License-Identifier: Apache-2.0
"Golden values, parity with other libraries, and bad input of measure.audio_metrics."

import math

import librosa
import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import scipy.special
import scipy.stats
import torch
from mir_eval.util import match_events

from cop_repro.core import BadInput
from cop_repro.measure import audio_metrics as m
from cop_repro.measure.registry import REGISTRY, Metric, Registry

RATE = 24_000
TIME = np.arange(RATE) / RATE
REF = np.sin(2 * np.pi * 440 * TIME) * np.exp(-2 * TIME)
EST = 0.5 * np.sin(2 * np.pi * 440 * TIME + 1) * np.exp(-2 * TIME) + 0.1 * np.sin(
    2 * np.pi * 660 * TIME
)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_golden_si_sdr():
    assert round(m.si_sdr(REF, EST), 4) == -4.7437
    assert round(m.si_sdr_spec(REF, EST), 4) == 7.8970


def test_si_sdr_agrees_with_torchmetrics():
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    ref, est = rng().normal(size=(2, 5, 400))
    other = scale_invariant_signal_distortion_ratio(torch.tensor(est), torch.tensor(ref)).numpy()
    np.testing.assert_allclose(m.si_sdr(ref, est), other, atol=1e-6)


@pytest.mark.parametrize("snr_db", [-50, 0, 25, 29.9, 30.1, 60, 95])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_si_sdr_is_its_definition(snr_db, kind):
    "The shortcut by inner products equals the definition, across blocks and for any axes."
    ref = rng(1).normal(size=(2, 3, 2 * m.BLOCK + 5)).astype(kind)
    est = (0.3 * ref + 0.3 * 10 ** (-snr_db / 20) * rng(2).normal(size=ref.shape)).astype(kind)
    ref64, est64 = ref.astype(float), est.astype(float)
    wanted = ((ref64 * est64).sum(-1, keepdims=True) / (ref64**2).sum(-1, keepdims=True)) * ref64
    by_hand = 10 * np.log10((wanted**2).sum(-1) / ((wanted - est64) ** 2).sum(-1))
    np.testing.assert_allclose(m.si_sdr(ref, est), by_hand, rtol=1e-11, atol=1e-11)
    assert m.si_sdr(ref[0, 0], est[0, 0]) == m.si_sdr(ref, est)[0, 0]


def test_si_sdr_refuses_energies_without_end():
    with pytest.raises(BadInput, match="level near 1"):
        m.si_sdr(1e200 * REF, EST)


def test_si_sdr_spec_agrees_with_scipy_stft():
    window = scipy.signal.get_window("hann", 1114)

    def magnitude(x):
        x = np.pad(x, 557)
        return np.abs(
            np.fft.rfft(np.lib.stride_tricks.sliding_window_view(x, 1114)[::240] * window)
        ).ravel()

    assert abs(m.si_sdr_spec(REF, EST) - m.si_sdr(magnitude(REF), magnitude(EST))) < 8e-6


def test_silence():
    quiet = np.zeros(RATE)
    for score in (m.si_sdr, m.si_sdr_spec):
        assert (
            score(REF, quiet) == -100
            and math.isnan(score(quiet, REF))
            and math.isnan(score(quiet, quiet))
            and score(REF, REF) == 100
        )
    assert m.mel_distance(quiet, quiet) == 0 and 0 < m.mel_distance(REF, quiet) < 80
    assert m.chroma_similarity(REF, quiet) == 0 and math.isnan(m.chroma_similarity(quiet, REF))
    assert m.audio_onsets(quiet).size == 0


def test_mel_agrees_with_librosa():
    spec = np.abs(librosa.stft(REF, n_fft=1024, hop_length=240, pad_mode="constant")) / 256
    mel = librosa.feature.melspectrogram(S=spec, sr=RATE, n_mels=80, norm=None)
    np.testing.assert_allclose(
        m.mel_spectrum_db(REF), 20 * np.log10(np.maximum(mel, 1e-4)), rtol=1e-6, atol=2e-3
    )


@pytest.mark.parametrize("score", [m.si_sdr, m.si_sdr_spec, m.mel_distance, m.chroma_similarity])
@pytest.mark.parametrize(
    "ref, est, said",
    [
        ([], [], "empty"),
        (REF, REF[:-1], "shape"),
        (REF, np.where(TIME > 0.5, np.nan, REF), "not finite"),
        (REF, np.where(TIME > 0.5, np.inf, REF), "not finite"),
        (REF.astype(str), REF, "dtype"),
        (REF * 1j, REF, "dtype"),
    ],
)
def test_bad_waveforms(score, ref, est, said):
    with pytest.raises(BadInput, match=said):
        score(ref, est)


def test_frechet_golden_and_routes():
    assert (
        abs(m.frechet_from_statistics([0, 0], np.diag([1.0, 4]), [1, -1], np.diag([9.0, 1])) - 7)
        < 1e-12
    )
    a, b = (
        rng(1).normal(size=(60, 12)),
        rng(2).normal(size=(60, 12)) @ rng(3).normal(size=(12, 12)) + 1,
    )
    product = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
    other = (
        ((a.mean(0) - b.mean(0)) ** 2).sum()
        + a.var(0, ddof=1).sum()
        + b.var(0, ddof=1).sum()
        - 2 * np.trace(scipy.linalg.sqrtm(product)).real
    )
    for route in ("covariance", "features", "auto"):
        assert m.frechet_distance(a, b, route) == pytest.approx(other, rel=1e-6)


def test_frechet_agrees_with_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    a, b = rng(1).normal(size=(80, 8)), rng(2).normal(size=(80, 8)) + 0.3
    stats = [torch.tensor(x) for y in (a, b) for x in (y.mean(0), np.cov(y, rowvar=False))]
    assert m.frechet_distance(a, b) == pytest.approx(float(_compute_fid(*stats)), rel=1e-6)


@pytest.mark.parametrize("n, expected", [(50, 132), (76, 104), (200, 43), (1000, 8.6)])
def test_frechet_bias(n, expected):
    values = [
        m.frechet_distance(rng(i).normal(size=(n, 128)), rng(i + 50).normal(size=(n, 128)))
        for i in range(3)
    ]
    assert abs(np.mean(values) / expected - 1) < 0.05


@pytest.mark.parametrize(
    "cov, said",
    [
        (np.ones((2, 3)), "shape"),
        (np.eye(3), "shape"),
        ([[1.0, 0.5], [0, 1]], "symmetric"),
        (np.diag([1.0, -1e-3]), "eigenvalue"),
    ],
)
def test_bad_covariances(cov, said):
    for covs in ((cov, cov), (np.eye(len(cov)), cov), (cov, np.eye(2))):
        with pytest.raises(
            BadInput, match=said if np.shape(covs[0]) == np.shape(covs[1]) else "shape"
        ):
            m.frechet_from_statistics([0, 0], covs[0], [1, -1], covs[1])
    for fine in (np.zeros((2, 2)), np.diag([1.0, -1e-9]), np.ones((2, 2))):
        assert m.frechet_from_statistics([0, 0], fine, [1, -1], fine) == pytest.approx(2, abs=1e-4)


def test_kid_agrees_with_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    a, b = rng(1).normal(size=(30, 16)), rng(2).normal(size=(30, 16)) + 0.5
    assert m.kid(a, b) == pytest.approx(float(poly_mmd(torch.tensor(a), torch.tensor(b))), rel=1e-6)
    same = [
        m.kid(rng(i).normal(size=(40, 16)), rng(i + 99).normal(size=(40, 16))) for i in range(40)
    ]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(40) and min(same) < 0 < max(same)


def test_kid_in_parts():
    "Blocks of the kernel say what the whole kernel says."
    a, b = rng(1).normal(size=(2500, 5)), rng(2).normal(size=(1100, 5)) + 0.2
    kernel = lambda x, y: (x @ y.T / 5 + 1) ** 3
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    assert m.kid(a, b) == pytest.approx(
        within(kernel(a, a)) + within(kernel(b, b)) - 2 * kernel(a, b).mean(), rel=1e-9
    )


def test_fad_infinity():
    a, b = rng(1).normal(size=(800, 8)), rng(2).normal(size=(800, 8)) + 0.5
    fit = m.fad_infinity(a, b, seed=3)
    assert (
        abs(fit.value - 2) < 0.3
        and fit.slope > 0
        and m.fad_infinity(a, b, seed=3).value == fit.value
    )
    assert abs(m.fad_infinity(a, rng(5).normal(size=(800, 8)), seed=3).value) < 0.06


@pytest.mark.parametrize(
    "ref, est, said",
    [
        (np.ones((1, 4)), np.ones((1, 4)), "single clip"),
        (np.ones((5, 4)), np.ones((5, 3)), "dimensions"),
        (np.ones((5, 4)), np.ones((6, 4)), "equal"),
        (np.ones(4), np.ones(4), "axes"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), "finite"),
    ],
)
def test_bad_features(ref, est, said):
    with pytest.raises(BadInput, match=said):
        m.frechet_distance(ref, est)


GT = np.array([[2, 0, 0, -1], [0, 3, 0, 0], [1, 1, 1, 1.0]])
GEN = np.array([[1, 0, 0.5, -1], [0, 2, 1, 0], [1, 0, 0, 1.0]])


def test_kl_and_is():
    from torchmetrics.functional import kl_divergence

    assert (round(m.kl(GT, GEN), 7), round(m.kl(GEN, GT), 7), round(m.inception_score(GT), 7)) == (
        0.1587026,
        0.1905745,
        1.4024687,
    )
    p, q = (torch.tensor(x).softmax(1) for x in (GT, GEN))
    assert abs(m.kl(GT, GEN) - float(kl_divergence(p, q))) < 1e-9
    logits = rng().normal(size=(20, 6))
    p = scipy.special.softmax(logits, axis=1)
    parts = [
        math.exp(np.mean([scipy.stats.entropy(row, part.mean(0)) for row in part]))
        for part in np.array_split(p, 3)
    ]
    assert abs(m.inception_score(logits, 3) - np.mean(parts)) < 1e-9
    assert (
        math.isfinite(m.kl([[800.0, 0]], [[0.0, 800]]))
        and abs(m.inception_score([[1.0, 2]] * 2) - 1) < 1e-12
    )


@pytest.mark.parametrize(
    "args, said",
    [
        ((GT, GEN, "abc", "abd"), "partner"),
        ((GT, GEN, "aab", "abc"), "twice"),
        ((GT, GEN, "abc"), "one side"),
        ((GT, GEN[:2]), "shape"),
        ((GT, GEN, "ab", "ab"), "ids for"),
    ],
)
def test_bad_pairs(args, said):
    with pytest.raises(BadInput, match=said):
        m.kl(*args)


def test_cosines():
    a, b = rng(1).normal(size=(2, 9, 4))
    assert (
        abs(
            m.clap_score(a, b)
            - torch.nn.functional.cosine_similarity(torch.tensor(a), torch.tensor(b)).mean().item()
        )
        < 1e-9
    )
    frames = [rng(i).normal(size=(61, 4)) for i in range(9)]
    picked = np.stack([f[[0, 30, 60]].mean(0) for f in frames])
    assert abs(m.clip_score(a, frames) - 100 * m.clap_score(a, picked)) < 1e-9
    with pytest.raises(BadInput):
        m.clip_score(a, frames[:3])


@pytest.mark.parametrize(
    "audio, video, old, new",
    [
        ([0.5, 1, 2], [0.53, 1.5, 2.02], 0.5, 0.5),
        ([1, 1.01, 1.02, 1.03], [1.02], 4.0, 0.25),
        ([1, 1.03, 2, 2.5], [1.02, 2.03, 2.06], 0.75, 0.4),
    ],
)
def test_av_align_golden(audio, video, old, new):
    assert (
        m.av_align(audio, video, 25, revision="2023") == old and m.av_align(audio, video, 25) == new
    )
    assert m.av_align(audio[::-1], video[::-1], 25) == new


def test_matching_is_maximal():
    for i in range(50):
        a, b = np.sort(rng(i).uniform(0, 3, 30)), np.sort(rng(i + 100).uniform(0, 3, 25))
        assert m.count_matches(a, b, lambda x, y: abs(x - y) <= 0.05) == len(
            match_events(a, b, 0.05)
        )


def test_flow_and_onsets():
    video = np.zeros((20, 40, 40, 3), np.uint8)
    video[:10, 10:20, 10:20] = 200
    video[10:, 10:20, 14:24] = 200
    flow = m.flow_magnitude(video)
    assert len(flow) == 20 and m.video_peaks(flow, 25).tolist() == [0.4]
    assert (
        m.video_peaks(flow, 25, threshold=99).size == 0
        and m.video_peaks(flow, 25, "2023").size == 1
    )
    click = np.zeros(RATE)
    click[12_000:12_400] = rng().normal(size=400)
    assert abs(m.audio_onsets(click) - 0.5).min() < 0.03 and m.audio_onsets(np.ones(10)).ndim == 1
    with pytest.raises(BadInput):
        m.flow_magnitude(video[:1])
    with pytest.raises(BadInput):
        m.flow_magnitude(video / 255)


def test_av_offset():
    track = rng().normal(size=(80, 12))
    for shift in (-9, 0, 4):
        assert m.av_offset(np.roll(track, shift, 0) @ track.T, 25).offset_ms == 40 * shift
    assert m.av_offset(np.zeros((30, 30)), 25) == m.AvOffset(0, 0, 0)
    with pytest.raises(BadInput):
        m.av_offset(np.ones((3, 4)), 25)


def test_motion_offset():
    "Delays are recovered to a frame at any video rate; silence or stillness is undefined."
    for frame_rate in (25.0, 30.0):
        frames, hits = round(4 * frame_rate), [0.8, 1.6, 2.9]
        flow = np.zeros(frames)
        for t in hits:
            flow[round(t * frame_rate) : round(t * frame_rate) + 3] = [2, 1, 0.4]
        wav = np.zeros(4 * RATE)
        for t in hits:
            wav[round(t * RATE) : round(t * RATE) + 2400] = rng(3).normal(size=2400) * np.exp(
                -np.arange(2400) / 400
            )
        for late_s in (-0.4, 0, 0.24):
            found = m.motion_offset(np.roll(wav, round(late_s * RATE)), flow, frame_rate)
            assert abs(found.offset_ms - 1000 * late_s) < 1001 / frame_rate and found.margin > 0.2
    for sound, video in ((0 * wav, flow), (wav, 0 * flow), (wav + 1, 0 * flow + 2)):
        assert math.isnan(m.motion_offset(sound, video, 30.0).offset_ms)
    with pytest.raises(BadInput, match="one length"):
        m.motion_offset(wav, flow[:-9], 30.0)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: m.si_sdr_spec(REF, EST, 24), "kHz"),
        (lambda: m.mel_distance(REF, EST, 0), "samples per second"),
        (lambda: m.chroma_similarity(REF, EST, -1), "samples per second"),
        (lambda: m.audio_onsets(REF, 24), "kHz"),
        (lambda: m.stft_magnitude(REF, 64, 0), "hop_length"),
        (lambda: m.video_peaks(np.ones(9), 0), "frame_rate"),
        (lambda: m.av_offset(np.ones((9, 9)), 0), "frame_rate"),
        (lambda: m.av_offset(np.ones((9, 9)), 25, -1), "max_offset_s"),
        (lambda: m.av_offset(np.full((9, 9), np.nan), 25), "finite"),
        (lambda: m.motion_offset(REF, np.ones(25), math.nan), "frame_rate"),
        (lambda: m.av_align([math.nan], [1], 25), "finite"),
        (lambda: m.bootstrap_interval([1, 2.0], "ab", seed=0, num_samples=0), "num_samples"),
        (lambda: m.bootstrap_draws(len, "ab", seed=0, num_samples=0), "num_samples"),
        (lambda: m.kid(np.ones((4, 2)), np.ones((4, 2)), 0), "degree"),
        (
            lambda: m.clip_score(np.ones((2, 3)), [np.ones((4, 3)), np.ones((4, 2))]),
            "two extractors",
        ),
        (lambda: m.clip_score(np.ones((1, 3)), [np.ones((4, 3))], 0), "every"),
        (lambda: m.clip_score(np.ones((1, 3)), [np.ones((0, 3))]), "empty"),
        (lambda: m.inception_score(GT, 9), "splits"),
        (lambda: m.inception_score(GT[:1]), "single clip"),
        (lambda: m.inception_score(GT, 2), "single clip"),
        (lambda: m.inception_score(np.zeros((0, 4))), "empty"),
        (lambda: m.clap_score(np.ones((2, 3)), np.ones((3, 3))), "shape"),
        (lambda: m.kl(GT * np.nan, GEN), "finite"),
    ],
)
def test_bad_numbers(call, said):
    with pytest.raises(BadInput, match=said):
        call()


def test_bootstrap():
    values = rng().normal(size=400)
    mean, low, high = m.bootstrap_interval(values, range(400), seed=0, num_samples=4000)
    assert (
        abs((high - low) / (2 * 1.96 * values.std() / 20) - 1) < 0.05
        and abs(mean - values.mean()) < 1e-12
    )
    assert m.bootstrap_interval(values, range(400), seed=1) != m.bootstrap_interval(
        values, range(400), seed=2
    )
    assert m.bootstrap_interval(
        values, [f"w{i % 7}" for i in range(400)], seed=1
    ) == m.bootstrap_interval(values, [i % 7 for i in range(400)], seed=1)
    assert m.paired_interval(values + 1, values, range(400), seed=0)[1] > 0.999
    assert all(map(math.isnan, m.bootstrap_interval([1, 2.0], "aa", seed=0)[1:])) and math.isnan(
        m.bootstrap_statistic(len, "aaa", seed=0)[1]
    )
    value, drawn = m.bootstrap_draws(lambda i: values[i].mean(), range(400), seed=3, num_samples=50)
    other = m.bootstrap_draws(lambda i: values[i].mean() + 0.2, range(400), seed=3, num_samples=50)
    np.testing.assert_allclose(other[1] - drawn, 0.2)  # one seed, the same works for both systems
    assert m.bootstrap_statistic(
        lambda i: values[i].mean(), range(400), seed=3, num_samples=50
    ) == (value, *m.draws_interval(value, drawn)) and math.isnan(m.draws_interval(1.0, [])[0])
    kept = m.drop_undefined([1, math.nan], "ab")
    assert kept[0].tolist() == [1] and kept[1:] == (["a"], 1)


@pytest.mark.parametrize(
    "values, groups, level, said",
    [
        ([1, math.nan], "ab", 0.95, "drop_undefined"),
        ([1, 2], "abc", 0.95, "groups"),
        ([], "", 0.95, "empty"),
        ([1, 2], "ab", 95, "share"),
    ],
)
def test_bad_bootstrap(values, groups, level, said):
    with pytest.raises(BadInput, match=said):
        m.bootstrap_interval(values, groups, seed=0, level=level)


def test_registry():
    assert REGISTRY["mel_distance"].arrow == "↓"
    assert all(k == v.name for k, v in REGISTRY.metrics.items())
    own = Registry()
    own.add(Metric("a", "", True))
    with pytest.raises(BadInput, match="twice"):
        own.add(Metric("a", "", True))


# Parity with other libraries on ordinary and adversarial inputs.

ADVERSARIAL = {
    "tiny": lambda x: 1e-5 * x,
    "offset": lambda x: x + 3,
    "huge": lambda x: 1e4 * x,
    "sparse": lambda x: x * (rng(5).random(x.shape) < 0.01),
    "constant": lambda x: np.full_like(x, 0.3) + 1e-3 * x,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_si_sdr_agrees_with_auraloss_and_torchmetrics(kind):
    import auraloss
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    ref, est = (ADVERSARIAL[kind](x) for x in rng(8).normal(size=(2, 4, 4000)))
    ours = m.si_sdr(ref, est)
    theirs = (
        -auraloss.time.SISDRLoss(zero_mean=False, eps=0, reduction="none")(
            torch.tensor(est)[:, None], torch.tensor(ref)[:, None]
        )
        .numpy()
        .ravel()
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    if (
        kind != "tiny"
    ):  # torchmetrics adds a constant to the energies, which makes it depend on the scale
        np.testing.assert_allclose(
            ours,
            scale_invariant_signal_distortion_ratio(torch.tensor(est), torch.tensor(ref)).numpy(),
            rtol=1e-6,
            atol=1e-6,
        )


def test_stft_agrees_with_auraloss():
    import auraloss

    loss = auraloss.freq.STFTLoss(
        fft_size=1024,
        hop_size=240,
        win_length=1024,
        w_sc=0,
        w_log_mag=0,
        w_lin_mag=1,
        mag_distance="L1",
    )
    ref, est = (torch.tensor(x, dtype=torch.float32)[None, None] for x in (REF, EST))
    theirs = [loss.stft(x.reshape(1, -1))[0][0].numpy() for x in (ref, est)]
    # Theirs pads by reflection, ours with zeros: compare the frames without padding.
    for x, other in zip((REF, EST), theirs):  # auraloss clips magnitudes at 1e-4
        np.testing.assert_allclose(
            np.maximum(m.stft_magnitude(x, 1024, 240)[:, 3:-3], 1e-4),
            other[:, 3:-3],
            rtol=2e-3,
            atol=2e-3,
        )


@pytest.mark.parametrize("case", ["ordinary", "few rows", "degenerate", "huge offset", "tiny"])
def test_frechet_and_kid_agree_on_adversarial_features(case):
    from sklearn.metrics.pairwise import polynomial_kernel

    a, b = rng(1).normal(size=(40, 6)), rng(2).normal(size=(40, 6)) @ rng(3).normal(size=(6, 6))
    if case == "few rows":
        a, b = a[:4], b[:4]
    if case == "degenerate":
        a, b = a * [1, 1, 0, 0, 0, 0], b * [1, 0, 0, 0, 0, 1]
    if case == "huge offset":
        a = a + 1e3
    if case == "tiny":
        a, b = 1e-4 * a, 1e-4 * b
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    roots = np.linalg.eigvals(covariances[0] @ covariances[1])
    other = (
        ((a.mean(0) - b.mean(0)) ** 2).sum()
        + sum(np.trace(c) for c in covariances)
        - 2 * np.sqrt(np.maximum(roots.real, 0)).sum()
    )
    scale = max(abs(other), sum(np.trace(c) for c in covariances))
    for route in ("covariance", "features"):
        assert abs(m.frechet_distance(a, b, route) - other) <= 1e-6 * scale
    k = lambda x, y: polynomial_kernel(x, y, degree=3, gamma=1 / 6, coef0=1)
    off = lambda x: (x.sum() - np.trace(x)) / (len(x) * (len(x) - 1))
    theirs = off(k(a, a)) + off(k(b, b)) - 2 * k(a, b).mean()
    assert abs(m.kid(a, b) - theirs) <= 1e-6 * max(abs(theirs), k(a, a).mean())


def test_frechet_bias_of_many():
    values = [
        m.frechet_distance(rng(i).normal(size=(5000, 128)), rng(i + 50).normal(size=(5000, 128)))
        for i in range(2)
    ]
    assert abs(np.mean(values) / 1.7 - 1) < 0.05


@pytest.mark.parametrize("scale", [1e-6, 1, 300])
def test_kl_agrees_with_scipy(scale):
    ref, est = scale * rng().normal(size=(2, 12, 9))
    p, q = (torch.tensor(x).log_softmax(1) for x in (ref, est))
    np.testing.assert_allclose(
        m.kl_per_clip(ref, est), (p.exp() * (p - q)).sum(1).numpy(), rtol=1e-6, atol=1e-15
    )
    if scale == 1:
        np.testing.assert_allclose(
            m.kl_per_clip(ref, est),
            [scipy.stats.entropy(*x) for x in zip(p.exp().numpy(), q.exp().numpy())],
            rtol=1e-9,
        )


def test_inception_score_agrees_with_torchmetrics_definition():
    logits = torch.tensor(rng().normal(size=(40, 7)))
    p = logits.softmax(1)
    theirs = [
        ((q * (q.log() - q.mean(0, keepdim=True).log())).sum(1).mean().exp()).item()
        for q in p.chunk(4)
    ]
    assert m.inception_score(logits.numpy(), 4) == pytest.approx(
        np.mean(theirs), rel=1e-6
    ) and m.inception_score(logits.numpy()) != pytest.approx(np.mean(theirs), rel=1e-2)


def test_si_sdr_spec_anchors():
    "Order and size of three anchors: most notes right, an unrelated piece, noise."
    from cop_repro.data.notes import make_notes, synthesise

    r = rng(4)
    t = np.sort(r.uniform(0, 4.5, 40))
    pitches = r.integers(48, 84, 40)
    play = lambda p, t: synthesise(make_notes(p, t, t + 0.4, np.full(len(p), 70)), 5.0)
    truth, keep = play(pitches, t), r.random(40) < 0.6
    some = play(
        np.concatenate([pitches[keep], r.integers(48, 84, 20)]),
        np.concatenate([t[keep], r.uniform(0, 4.5, 20)]),
    )
    other = play(r.integers(48, 84, 40), np.sort(r.uniform(0, 4.5, 40)))
    mostly, unrelated, noise = (
        m.si_sdr_spec(truth, x) for x in (some, other, r.normal(size=len(truth)))
    )
    assert (
        mostly > unrelated + 3
        and unrelated > noise + 1
        and -3 < mostly < 6
        and -12 < unrelated < -1
        and noise < -8
    )
