"""Swin encoder against MONAI's: hidden states and gradients, of the CPU implementation and that of GPUs."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.swin_unetr import PatchMerging as MonaiPatchMerging
from monai.networks.nets.swin_unetr import SwinTransformer, compute_mask, window_partition
from torch import Tensor, nn

from fusionseg.models.cost import saved_bytes
from fusionseg.models.swin import attention as swin_attention
from fusionseg.models.swin import encoder as swin_encoder
from fusionseg.models.swin import mlp as swin_mlp
from fusionseg.models.swin import patch_merging, score_bias
from fusionseg.models.swin.encoder import SwinEncoder
from fusionseg.models.swin.patch_merging import PatchMerging
from fusionseg.models.swin.window_layout import fitted_window, window_layout

CPU = torch.device("cpu")
# Shape of the volume and window: the stages are padded (window 3), tiled by windows (4) or smaller than the window.
CASES = [((2, 2, 64, 32, 32), 3), ((1, 1, 64, 64, 32), 4)]


def pair(window: int, *, v2: bool = False, channels: int = 1) -> tuple[nn.Module, SwinEncoder]:
    """Build MONAI's encoder and ours with the same weights. Noise replaces the initial values 0 and 1 of some."""
    torch.manual_seed(0)
    monais = SwinTransformer(channels, 12, (window,) * 3, (2, 2, 2), (2, 2, 2, 2), (3, 6, 12, 24), use_v2=v2)
    with torch.no_grad():
        for parameter in monais.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours = SwinEncoder(channels, 12, window_size=window, residual_stages=v2)
    ours.load_state_dict(monais.state_dict(), strict=True)
    return monais, ours


def run(encoder: nn.Module, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the hidden states, and all gradients of a fixed weighted sum of them."""
    encoder.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    states = encoder(x)
    generator = torch.Generator().manual_seed(1)
    sum((s.float() * torch.randn(s.shape, generator=generator)).mean() for s in states).backward()
    assert x.grad is not None
    grads = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return [s.detach() for s in states], {**grads, "x": x.grad}


def assert_same(
    found: tuple[list[Tensor], dict[str, Tensor]], expected: tuple[list[Tensor], dict[str, Tensor]]
) -> None:
    for mine, theirs in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)
    assert set(found[1]) == set(expected[1])
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-3 * gradient.abs().max().item(), msg=name)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize(("shape", "window"), CASES)
def test_encoder_is_that_of_monai(
    shape: tuple[int, ...], window: int, v2: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused:  # the implementation for GPUs
        for module in (swin_attention, swin_mlp, patch_merging):
            monkeypatch.setattr(module, "uses_chunks", lambda x: False)
        if shape[0] == 2:  # calls for groups of windows instead of one for all
            monkeypatch.setattr(score_bias, "_JOINED_BYTES", 0)
    monais, ours = pair(window, v2=v2, channels=shape[1])
    assert list(ours.state_dict()) == list(monais.state_dict())
    monais.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(shape)
    assert_same(run(ours, x), run(monais, x))


@pytest.mark.parametrize("size", [(4, 6, 8), (3, 5, 2)])
def test_patch_merging_is_that_of_monai(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = PatchMerging(6), MonaiPatchMerging(6)
    ours.load_state_dict(theirs.state_dict())
    tokens, weight = torch.randn(2, *size, 6), torch.randn(2, *(-(-axis // 2) for axis in size), 12)
    results = []
    for merging in (ours, theirs):
        x = tokens.clone().requires_grad_()
        out = merging(x)
        results.append((out, *torch.autograd.grad((out * weight).sum(), [x, *merging.parameters()])))
    for mine, other in zip(*results, strict=True):
        assert torch.equal(mine, other)


def test_hidden_states_without_normalisation() -> None:
    monais, ours = pair(4)
    x = torch.randn(1, 1, 32, 64, 32)
    with torch.no_grad():
        expected = monais(x, normalize=False)
        for state, other in zip(ours.stages(ours.patch_embed(x), normalize=False), expected, strict=True):
            torch.testing.assert_close(state, other, rtol=0, atol=2e-5)


def test_bfloat16_errors_are_not_larger_than_those_of_monai() -> None:
    monais, ours = pair(4)
    x = torch.randn(2, 1, 64, 32, 32)
    exact = run(monais, x)
    errors = []
    with torch.autocast("cpu", torch.bfloat16):
        for encoder in (monais, ours):
            states, gradients = run(encoder, x)
            keys = [name for name in exact[1] if "weight" in name]
            errors.append(
                [(s.float() - e).abs().mean() for s, e in zip(states, exact[0], strict=True)]
                + [(gradients[key] - exact[1][key]).abs().mean() / exact[1][key].abs().mean() for key in keys]
            )
    for theirs, mine in zip(*errors, strict=True):
        assert mine < 1.5 * theirs


def test_compiles_as_one_graph() -> None:
    ours = SwinEncoder(1, 12, depths=(2,), num_heads=(3,), window_size=3)
    x = torch.randn(1, 1, 16, 16, 8)
    expected = run(ours, x)
    ours.compile(backend="aot_eager", fullgraph=True)
    assert_same(run(ours, x), expected)


@pytest.mark.parametrize("stages", [(2, 4), (1, 2, 3, 4)])
def test_checkpointed_stages_have_equal_gradients(stages: tuple[int, ...]) -> None:
    again = SwinEncoder(1, 12, window_size=4, checkpoint_stages=stages, drop_path_rate=0.5)
    plain = SwinEncoder(1, 12, window_size=4, drop_path_rate=0.5)
    again.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, 64, 32, 32)
    kept, results = [], []
    for encoder in (plain, again):
        torch.manual_seed(3)  # for stochastic depth
        results.append(run(encoder.train(), x))
        kept.append(saved_bytes(encoder, lambda encoder=encoder: encoder(x)))
    assert_same(results[1], results[0])
    assert kept[1] < kept[0]


def test_encoder_keeps_a_fraction_of_the_memory_of_monai() -> None:
    x = torch.randn(1, 1, 64, 64, 32)
    monais, ours = pair(4)
    assert saved_bytes(ours, lambda: ours(x)) < 0.2 * saved_bytes(monais, lambda: monais(x))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dims", [(9, 7, 15), (8, 8, 8), (3, 4, 2)])
def test_windows_and_masks_are_those_of_monai(dims: tuple[int, int, int], shifted: bool) -> None:
    layout = window_layout(dims, 4, shifted, CPU)
    window, shift = fitted_window(dims, 4, shifted=shifted)
    padded = [-(-dim // n) * n for dim, n in zip(dims, window, strict=True)]
    numbers = torch.full((1, *padded, 1), layout.tokens)
    numbers[0, : dims[0], : dims[1], : dims[2], 0] = torch.arange(layout.tokens).view(dims)
    rolled = torch.roll(numbers, [-s for s in shift], (1, 2, 3))
    windows = window_partition(rolled, window)[..., 0]
    masks = compute_mask(padded, window, shift, CPU) if any(shift) else torch.zeros(len(windows), 1, 1)
    expected = {tuple(w.tolist()): m.expand(layout.length, layout.length) for w, m in zip(windows, masks, strict=True)}

    found = layout.index.view(-1, layout.length)
    assert len(layout.groups) <= 8 and len(found) == layout.windows == len(windows)
    for first, stop, mask in layout.groups:
        for row in found[first:stop]:
            wanted = expected.pop(tuple(row.tolist()))
            assert torch.equal(wanted, torch.zeros_like(wanted) if mask is None else mask)
    assert not expected
    assert torch.equal(layout.index[layout.slot], torch.arange(layout.tokens))
    assert torch.equal(layout.padded, (layout.index == layout.tokens).nonzero()[:, 0])


def test_window_layout_is_cached() -> None:
    assert window_layout((8, 8, 8), 4, True, CPU) is window_layout((8, 8, 8), 4, True, CPU)


def test_stochastic_depth_skips_whole_samples() -> None:
    torch.manual_seed(0)
    block = swin_encoder.SwinBlock(12, 3, 4, shifted=False, drop_path=0.5).train()
    x = torch.randn(16, 64, 12)
    layout = window_layout((4, 4, 4), 4, False, CPU)
    unchanged = (block(x, layout) == x).flatten(1).all(1)
    assert 0 < unchanged.sum() < 16
