# SPDX-License-Identifier: Apache-2.0
"Each metric twice: our arithmetic, and a library that defines the same quantity."

from collections.abc import Callable
from dataclasses import dataclass

import librosa
import numpy as np
import torch
from mir_eval import transcription, transcription_velocity

from cop_repro.core import needs_extra
from cop_repro.measure import audio_metrics, music_metrics

with needs_extra("dev"):
    from sklearn.metrics import precision_recall_fscore_support
    from sklearn.metrics.pairwise import polynomial_kernel
    from torchmetrics.functional import kl_divergence
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio
    from torchmetrics.image.fid import _compute_fid

SAMPLE_RATE = 24_000
HOP_LENGTH = 240


@dataclass(frozen=True)
class Pair:
    "One quantity, computed twice."

    name: str
    inputs: str  # sounds, notes or rolls of a clip; clips or windows of a set
    ours: Callable
    theirs: Callable
    library: str


def clip_pairs() -> list[Pair]:
    "Metrics of one clip: reference and estimate in, a number or several out."
    return [
        *_auraloss_pairs(),
        Pair("si_sdr", "sounds", audio_metrics.si_sdr, _si_sdr, "torchmetrics"),
        Pair(
            "si_sdr_spec",
            "sounds",
            audio_metrics.si_sdr_spec,
            _si_sdr_spec,
            "librosa, torchmetrics",
        ),
        Pair("mel_distance", "sounds", audio_metrics.mel_distance, _mel_distance, "librosa"),
        Pair(
            "chroma_similarity",
            "sounds",
            audio_metrics.chroma_similarity,
            _chroma_similarity,
            "librosa",
        ),
        Pair("note_scores", "notes", _our_note_scores, _note_scores, "mir_eval"),
        Pair("frame_scores", "rolls", _our_frame_scores, _frame_scores, "scikit-learn"),
    ]


def set_pairs() -> list[Pair]:
    "Metrics of a set, from features or class logits."
    return [
        Pair("frechet_distance", "windows", audio_metrics.frechet_distance, _fid, "torchmetrics"),
        Pair("kid", "clips", audio_metrics.kid, _kid, "scikit-learn"),
        Pair("kl", "clips", audio_metrics.kl, _kl, "torchmetrics"),
        Pair("clap_score", "clips", audio_metrics.clap_score, _clap_score, "torch"),
    ]


def _auraloss_pairs() -> list[Pair]:
    "A second library for SI-SDR, where it is installed: it is for development only."
    try:
        import auraloss
    except ImportError:
        return []
    loss = auraloss.time.SISDRLoss(zero_mean=False, eps=0)

    def si_sdr(ref: np.ndarray, est: np.ndarray) -> float:
        return -float(loss(*(t[None, None] for t in _tensors(ref, est))))

    return [Pair("si_sdr", "sounds", audio_metrics.si_sdr, si_sdr, "auraloss")]


def _tensors(ref: np.ndarray, est: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    "Estimate first, as torch libraries want it."
    return tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in (est, ref))


def _si_sdr(ref: np.ndarray, est: np.ndarray) -> float:
    "Of two waveforms."
    return float(scale_invariant_signal_distortion_ratio(*_tensors(ref, est)))


def _si_sdr_spec(ref: np.ndarray, est: np.ndarray) -> float:
    "Of two magnitude spectrograms."
    return _si_sdr(_spectrum(ref), _spectrum(est))


def _spectrum(wav: np.ndarray) -> np.ndarray:
    "Magnitudes with the paper's window, which is 2048 samples at 44.1 kHz."
    n_fft = int(2048 * SAMPLE_RATE / 44_100)
    return abs(_stft(wav, n_fft)).ravel()


def _stft(wav: np.ndarray, n_fft: int) -> np.ndarray:
    return librosa.stft(wav, n_fft=n_fft, hop_length=HOP_LENGTH, pad_mode="constant")


def _mel_distance(ref: np.ndarray, est: np.ndarray) -> float:
    "Mean absolute difference of mel levels, dB."
    return float(abs(_mel_db(ref) - _mel_db(est)).mean())


def _mel_db(wav: np.ndarray) -> np.ndarray:
    "Levels of 80 mel bands."
    magnitudes = abs(_stft(wav, 1024)) / 256
    mel = librosa.feature.melspectrogram(S=magnitudes, sr=SAMPLE_RATE, n_mels=80, norm=None)
    return librosa.amplitude_to_db(mel, amin=1e-4, top_db=None)


def _chroma_similarity(ref: np.ndarray, est: np.ndarray) -> float:
    "Mean cosine of chroma vectors."
    a, b = _chroma(ref), _chroma(est)
    norms = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return float(((a * b).sum(0) / norms).mean())


def _chroma(wav: np.ndarray) -> np.ndarray:
    "Energy by pitch class."
    return librosa.feature.chroma_stft(
        y=wav,
        sr=SAMPLE_RATE,
        n_fft=4096,
        hop_length=960,
        tuning=0.0,
        norm=None,
        pad_mode="constant",
    )


def _our_note_scores(ref, est) -> list[float]:
    "F1 of onsets and of notes, without and with velocity."
    made = music_metrics.note_scores(ref, est)
    return [made[k] for k in ("onset_f1", "onset_velocity_f1", "note_f1", "note_velocity_f1")]


def _note_scores(ref, est) -> list[float]:
    "The same by mir_eval."
    plain = transcription.precision_recall_f1_overlap
    with_velocity = transcription_velocity.precision_recall_f1_overlap
    ref_notes, est_notes = _intervals(ref), _intervals(est)
    ref_all, est_all = (*ref_notes, ref.velocities), (*est_notes, est.velocities)
    made = []
    for ratio in (None, 0.2):
        made.append(plain(*ref_notes, *est_notes, offset_ratio=ratio)[2])
        made.append(with_velocity(*ref_all, *est_all, offset_ratio=ratio)[2])
    return made


def _intervals(notes) -> tuple[np.ndarray, np.ndarray]:
    "Times and frequencies."
    times = np.stack([notes.onsets_s, notes.offsets_s], 1)
    return times, librosa.midi_to_hz(notes.pitches)


def _our_frame_scores(ref: np.ndarray, est: np.ndarray) -> list[float]:
    "Precision, recall and F1 of roll frames, averaged in three ways."
    scores = music_metrics.frame_scores(ref, est)
    return [value for name, value in scores.items() if "accuracy" not in name]


def _frame_scores(ref: np.ndarray, est: np.ndarray) -> list[float]:
    "The same by scikit-learn."
    made = []
    for average in ("samples", "weighted", "micro"):
        scores = precision_recall_fscore_support(ref, est, average=average, zero_division=1)
        made.extend(scores[:3])
    return made


def _fid(ref: np.ndarray, est: np.ndarray) -> float:
    "Fréchet distance."
    return float(_compute_fid(*_statistics(ref), *_statistics(est)))


def _statistics(features: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    "Mean and covariance."
    return torch.from_numpy(features.mean(0)), torch.from_numpy(np.cov(features, rowvar=False))


def _kid(ref: np.ndarray, est: np.ndarray) -> float:
    "Unbiased squared MMD with a cubic kernel."
    return _within(ref) + _within(est) - 2 * _kernel(ref, est).mean()


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return polynomial_kernel(x, y, degree=3, gamma=1 / x.shape[1], coef0=1)


def _within(x: np.ndarray) -> float:
    "Mean kernel of different examples."
    k = _kernel(x, x)
    return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))


def _kl(ref: np.ndarray, est: np.ndarray) -> float:
    "Mean KL divergence of class probabilities."
    return float(kl_divergence(*(torch.from_numpy(x).softmax(1) for x in (ref, est))))


def _clap_score(ref: np.ndarray, est: np.ndarray) -> float:
    "Mean cosine."
    cosine = torch.nn.functional.cosine_similarity
    return float(cosine(torch.from_numpy(ref), torch.from_numpy(est)).mean())
