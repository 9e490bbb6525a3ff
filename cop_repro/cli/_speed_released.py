# SPDX-License-Identifier: Apache-2.0
"""The published architecture as the released code evaluates it, written plainly, to be timed.

Float32; text encoder, keys and values of the text and the projection of the roll in every pass;
attention with explicit logits, which are bounded by 50 tanh(l / 50) and masked; the two branches
of guidance one after the other. It reads the weights of a `MultiStreamDiT`, so that both can be
compared, and is for nothing else. Sources: arXiv 2503.22200 and its inference code of April 2025.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cop_repro.model.dit import AudioBlock, MultiStreamDiT, StreamBlock


class ReleasedDiT(nn.Module):
    "The three-stream network in the plainest form, with a text encoder in front."

    def __init__(self, dit: MultiStreamDiT, text_encoder: nn.Module | None = None):
        super().__init__()
        self.dit, self.text_encoder = dit, text_encoder

    def guided(self, xt: Tensor, t: Tensor, given: dict, strength: float = 2.0) -> Tensor:
        "The conditional pass, then the one without text and video; guidance from both."
        conditional = self(xt, t, **given)
        null = self(xt, t, **given, dropped=True)
        return conditional + strength * (conditional - null)

    def forward(
        self, xt: Tensor, t: Tensor, ids: Tensor, video: Tensor, roll: Tensor, dropped: bool = False
    ) -> Tensor:
        "One pass; text and video are zero where they are dropped, and computed all the same."
        dit = self.dit
        text = self._encoded(ids)
        if dropped:
            text, video = torch.zeros_like(text), torch.zeros_like(video)
        x = dit.audio_input(xt)
        x = x + dit.audio_positions[torch.arange(x.shape[1])]
        streams = {"audio": x, "video": video, "roll": dit.roll_input(roll)}
        streams = {n: torch.cat([dit.registers[n][None], s], 1) for n, s in streams.items()}
        mask = torch.ones(streams["audio"].shape[:2], dtype=torch.bool)
        angles = _angles(streams["audio"].shape[1], dit.config)
        code, skips = _time_code(dit.audio_time, t), []
        for index, layer in enumerate(dit.layers):
            for name in ("video", "roll"):
                streams[name] = _side_block(getattr(layer, name), streams[name], angles, mask)
            streams = _fused(layer.fusion.maps, streams)
            x = self._audio(layer, streams["audio"], skips, code, angles, mask, text)
            streams["audio"] = x
            if index < len(dit.layers) // 2:
                skips.append(x)  # as in ours; the released code pushes before the audio block
        x = streams["audio"][:, dit.config.num_registers :]
        return dit.audio_output(_norm(x, dit.audio_norm.weight))

    def _encoded(self, ids: Tensor) -> Tensor:
        "Features of the tokens; without an encoder they are given."
        if self.text_encoder is None:
            return ids
        return self.text_encoder(input_ids=ids).last_hidden_state

    def _audio(self, layer, x, skips, code, angles, mask, text) -> Tensor:
        "The skip from the mirrored layer, and the audio block."
        if layer.skip is not None:
            x = layer.skip(torch.cat([x, skips.pop()], -1))
        return _audio_block(layer.audio, x, code, angles, mask, text)


def _angles(length: int, config) -> Tensor:
    "Rotary angles, one for each position and feature."
    pairs = torch.arange(0, config.audio.head_width, 2).float()
    rates = 1 / config.rotary_base ** (pairs / config.audio.head_width)
    return torch.einsum("n,d->nd", torch.arange(length).float(), rates).repeat_interleave(2, -1)


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    "Each pair of features, turned by its angle."
    left, right = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-right, left], -1).flatten(-2)
    return x * angles.cos() + turned * angles.sin()


def _time_code(code: nn.Module, t: Tensor) -> Tensor:
    "Random Fourier features, a linear map and SiLU."
    angles = torch.einsum("b,f->bf", t, code.frequencies) * 2 * math.pi
    return F.silu(code.project(torch.cat([t[:, None], angles.sin(), angles.cos()], -1)))


def _norm(x: Tensor, gain: Tensor) -> Tensor:
    "Unit length times the root of the width times a gain."
    return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * gain


def _attention(own, x: Tensor, angles, mask: Tensor, context: Tensor | None = None) -> Tensor:
    "Multi-head attention with bounded logits and gated heads, every matrix in full."
    source = x if context is None else context

    def heads(y: Tensor) -> Tensor:
        return y.unflatten(-1, (own.heads, -1)).transpose(1, 2).contiguous()

    keys, values = own.to_kv.weight.chunk(2)
    q, k = heads(F.linear(x, own.to_q.weight)), heads(F.linear(source, keys))
    v = heads(F.linear(source, values))
    if context is None:
        q, k = _rotated(q, angles), _rotated(k, angles)
    logits = torch.einsum("bhid,bhjd->bhij", q * q.shape[-1] ** -0.5, k)
    if own.soft_clamp is not None:
        logits = own.soft_clamp * (logits / own.soft_clamp).tanh()
    logits = logits.masked_fill(~mask[:, None, None], torch.finfo(logits.dtype).min)
    mixed = torch.einsum("bhij,bhjd->bhid", logits.softmax(-1), v)
    gates = own.head_gate(x).sigmoid().transpose(1, 2)[..., None]
    return own.to_out((mixed * gates).transpose(1, 2).flatten(-2))


def _convolved(own, x: Tensor, mask: Tensor) -> Tensor:
    "Depthwise convolution over time and SiLU, masked before and after."
    x = torch.where(mask[..., None], x, 0.0).transpose(1, 2)
    weight, bias = own.conv.weight[:, :, 0], own.conv.bias
    x = F.silu(F.conv1d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight)))
    return torch.where(mask[..., None], x.transpose(1, 2), 0.0)


def _feed_forward(own, x: Tensor) -> Tensor:
    "Two maps around halves gated by GELU."
    value, gate = own.up(x).chunk(2, -1)
    return own.down(value * F.gelu(gate))


def _side_block(block: StreamBlock, x: Tensor, angles: Tensor, mask: Tensor) -> Tensor:
    "A layer of the video or roll stream."
    x = _convolved(block.conv, x, mask) + x
    x = _attention(block.attention, _norm(x, block.attention_norm.weight), angles, mask) + x
    return _feed_forward(block.ff, _norm(x, block.ff_norm.weight)) + x


def _fused(maps: nn.ModuleDict, streams: dict[str, Tensor]) -> dict[str, Tensor]:
    "Every stream plus a map of itself and its sources."
    audio = streams["audio"]
    made = {"audio": audio + maps["audio"](torch.cat(list(streams.values()), -1))}
    for name in ("video", "roll"):
        x = streams[name]
        made[name] = x + maps[name](torch.cat([audio, x], -1)) if name in maps else x
    return made


def _audio_block(block: AudioBlock, x, code, angles, mask, text: Tensor) -> Tensor:
    "A layer of the audio stream, normed and gated by the time code."

    def normed(i: int) -> Tensor:
        return _norm(x, 1 + block.norms[i].gain(code)[:, None])

    def gated(i: int, y: Tensor) -> Tensor:
        return y * block.gates[i](code)[:, None].sigmoid()

    x = _convolved(block.conv, x, mask) + x
    x = x + gated(0, _attention(block.attention, normed(0), angles, mask))
    everywhere = torch.ones(text.shape[:2], dtype=torch.bool)
    x = x + gated(1, _attention(block.cross, normed(1), None, everywhere, text))
    return x + gated(2, _feed_forward(block.ff, normed(2)))
