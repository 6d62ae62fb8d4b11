from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional

from wmgym.nets.coders import CoderConfig, Decoder, Encoder
from wmgym.nets.distributions import symlog
from wmgym.nets.images import ImageDecoder, ImageSizeError
from wmgym.nets.patches import join_places, split_places

VECTOR = spaces.Box(-np.inf, np.inf, (3,))
NUMBER = spaces.Box(-1, 1, ())
DREAMER = CoderConfig(units=16, depth=4)
V3 = CoderConfig(units=64, layers=3, norm="rms", init="v3", image="v3", depth=4, image_act="silu", image_norm="rms")
PATCHES = CoderConfig(units=16, image="patches", depth=4, image_act="silu", image_norm="layer")
ROUNDED = [replace(config, bfloat16=True) for config in (DREAMER, PATCHES)]
ALL = pytest.mark.parametrize(
    "config", [DREAMER, V3, PATCHES, *ROUNDED], ids=["dreamer", "v3", "patches", "bfloat16", "patches in bfloat16"]
)
FEATURES, DETER = 640, 512  # DreamerV3's size 1m


def picture(height: int = 64, width: int = 64, channels: int = 3) -> spaces.Box:
    return spaces.Box(0, 255, (height, width, channels), np.uint8)


def observations(boxes: dict[str, spaces.Box], *leading: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randint(0, 256, (*leading, *box.shape), generator=generator, dtype=torch.uint8)
        if len(box.shape) == 3
        else 5 * torch.randn((*leading, *box.shape), generator=generator)
        for key, box in boxes.items()
    }


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    let_it_multiply_bfloat16(monkeypatch, True)  # whatever the processor, it is bfloat16 that is tested


def let_it_multiply_bfloat16(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    monkeypatch.setattr("wmgym.nets.precision.multiplies_bfloat16", lambda device: answer)


@pytest.mark.parametrize("leading", [(), (1,), (2, 5)])
@ALL
@pytest.mark.parametrize(
    "boxes",
    [
        {"observation": VECTOR},
        {"observation": NUMBER},
        {"observation": picture()},
        {"a": VECTOR, "b": picture(), "c": NUMBER, "d": picture(channels=1)},
    ],
    ids=["vector", "number", "picture", "all"],
)
def test_shapes_and_types(boxes: dict[str, spaces.Box], config: CoderConfig, leading: tuple[int, ...]) -> None:
    encoder, decoder = Encoder(boxes, config), Decoder(FEATURES, boxes, config, DETER)
    observed = observations(boxes, *leading)
    embedded = encoder(observed)
    assert embedded.shape == (*leading, encoder.out_size)
    assert embedded.dtype == torch.float32
    features = torch.randn(*leading, FEATURES)
    means, drawn, losses = decoder(features), decoder.observation(features), decoder.loss(features, observed)
    assert set(means) == set(drawn) == set(losses) == set(boxes)
    for key, box in boxes.items():
        assert means[key].shape == drawn[key].shape == (*leading, *box.shape)
        assert means[key].dtype == losses[key].dtype == torch.float32
        assert drawn[key].dtype == (torch.uint8 if box.dtype == np.uint8 else torch.float32)
        assert losses[key].shape == leading
        assert (losses[key] > 0).all()


def test_leading_dimensions_do_not_change_the_numbers() -> None:
    boxes = {"a": VECTOR, "b": picture(), "c": NUMBER}
    encoder, decoder = Encoder(boxes, DREAMER), Decoder(8, boxes, DREAMER)
    observed, features = observations(boxes, 2, 3), torch.randn(2, 3, 8)
    together, alone = encoder(observed), encoder({key: x[1, 2] for key, x in observed.items()})
    torch.testing.assert_close(together[1, 2], alone, atol=1e-5, rtol=1e-4)
    losses = decoder.loss(features, observed)
    for key, loss in decoder.loss(features[1, 2], {key: x[1, 2] for key, x in observed.items()}).items():
        torch.testing.assert_close(losses[key][1, 2], loss, atol=1e-4, rtol=1e-4)


def test_the_papers_sizes() -> None:
    assert Encoder({"observation": picture()}, CoderConfig(depth=32)).out_size == 1024  # PlaNet
    assert Encoder({"observation": picture()}, V3).out_size == 4 * 4 * 16
    assert Encoder({"observation": picture(96, 96)}, V3).out_size == 6 * 6 * 16


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_dreamer_encoder_is_four_strided_convolutions_of_the_centred_picture(bfloat16: bool) -> None:
    boxes = {"observation": picture()}
    encoder = Encoder(boxes, replace(DREAMER, bfloat16=bfloat16))
    observed = observations(boxes, 6)
    x = (observed["observation"].double() / 255 - 0.5).permute(0, 3, 1, 2)
    weights = [p.detach().double() for p in encoder.parameters()]
    for weight, bias in zip(weights[::2], weights[1::2]):
        x = functional.relu(functional.conv2d(x, weight, bias, stride=2))
    expected = x.permute(0, 2, 3, 1).flatten(1).float()
    close = {"atol": 1e-2, "rtol": 5e-2} if bfloat16 else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(encoder(observed), expected, **close)


def test_the_dreamer_decoder_is_four_transposed_convolutions_forwards_and_backwards() -> None:
    decoder = Decoder(8, {"observation": picture()}, DREAMER)
    features = torch.randn(6, 8)
    weights = [p.detach().double().requires_grad_() for p in decoder.parameters()]
    x = functional.linear(features.double(), weights[0], weights[1])[:, :, None, None]
    for i, (weight, bias) in enumerate(zip(weights[2::2], weights[3::2])):
        x = functional.conv_transpose2d(functional.relu(x) if i else x, weight, bias, stride=2)
    expected = x.permute(0, 2, 3, 1)
    drawn = decoder(features)["observation"]
    torch.testing.assert_close(drawn, expected.float(), atol=1e-5, rtol=1e-4)
    pull = torch.randn_like(drawn)
    gradients = torch.autograd.grad(drawn, list(decoder.parameters()), pull)
    for gradient, slow in zip(gradients, torch.autograd.grad(expected, weights, pull.double()), strict=True):
        torch.testing.assert_close(gradient, slow.float(), atol=1e-2, rtol=1e-3)


def _v3_act(x: Tensor, scale: Tensor) -> Tensor:
    """RMS normalisation over the channels of (N, C, H, W), then SiLU, from their definitions."""
    x = x / (x.square().mean(1, keepdim=True) + 1e-4).sqrt() * scale[:, None, None]
    return x * torch.sigmoid(x)


def test_the_v3_encoder_is_its_definition() -> None:
    boxes = {"observation": picture(32, 48, 1)}
    encoder = Encoder(boxes, V3)
    observed = observations(boxes, 3)
    x = (observed["observation"].double() / 255 - 0.5).permute(0, 3, 1, 2)
    weights = [p.detach().double() for p in encoder.parameters()]
    for weight, bias, scale in zip(weights[::3], weights[1::3], weights[2::3]):
        x = functional.conv2d(x, weight, bias, padding=2)
        x = _v3_act(x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5)), scale)
    torch.testing.assert_close(encoder(observed), x.permute(0, 2, 3, 1).flatten(1).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_v3_decoder_is_upsampling_and_convolutions(bfloat16: bool) -> None:
    decoder = Decoder(FEATURES, {"observation": picture(32, 48)}, replace(V3, bfloat16=bfloat16), DETER)
    network = decoder.pictures
    assert network is not None
    features = torch.randn(3, FEATURES)
    with torch.no_grad():
        deter = network.from_deter(features[:, :DETER]).reshape(3, 8, 2, 3, 2)
        x = deter.permute(0, 2, 3, 1, 4).reshape(3, 2, 3, 16) + network.from_stoch(features[:, DETER:]).reshape(
            3, 2, 3, 16
        )
    x = x.permute(0, 3, 1, 2).double()
    weights = [p.detach().double() for p in network.rest.parameters()]
    for scale, weight, bias in zip(weights[::3], weights[1::3], weights[2::3]):
        x = _v3_act(x, scale).repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = functional.conv2d(x, weight, bias, padding=2)
    expected = torch.sigmoid(x).permute(0, 2, 3, 1).float()
    close = {"atol": 2e-2, "rtol": 0.0} if bfloat16 else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(decoder(features)["observation"], expected, **close)


@pytest.mark.parametrize(
    ("deter", "classes", "depth", "units", "encoder_size", "decoder_size"),
    [(512, 4, 4, 64, 14_304, 80_595), (2048, 16, 16, 256, 220_416, 1_272_003)],
)
def test_v3_has_as_many_parameters_as_the_official_code(
    deter: int, classes: int, depth: int, units: int, encoder_size: int, decoder_size: int
) -> None:
    # Together with the other parts these give the official totals, 686 846 and 10 494 158.
    boxes, config = {"observation": picture()}, replace(V3, depth=depth, units=units)
    encoder, decoder = Encoder(boxes, config), Decoder(deter + 32 * classes, boxes, config, deter)
    assert sum(p.numel() for p in encoder.parameters()) == encoder_size
    assert sum(p.numel() for p in decoder.parameters()) == decoder_size


def _patch_act(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer normalisation over the channels of (N, C, H, W), then SiLU, from their definitions."""
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-3).sqrt()
    x = x * scale[:, None, None] + shift[:, None, None]
    return x * torch.sigmoid(x)


def test_the_patch_encoder_is_convolutions_of_windows_that_do_not_overlap() -> None:
    boxes = {"observation": picture(32, 48, 1)}
    encoder = Encoder(boxes, PATCHES)
    observed = observations(boxes, 3)
    x = ((observed["observation"].double() - 127.5) / 64).permute(0, 3, 1, 2)
    p = [p.detach().double() for p in encoder.parameters()]
    for side, (weight, bias, scale, shift) in zip((8, 2), (p[:4], p[4:])):
        kernel = weight.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)
        x = _patch_act(functional.conv2d(x, kernel, bias, stride=side), scale, shift)
    torch.testing.assert_close(encoder(observed), x.permute(0, 2, 3, 1).flatten(1).float(), atol=1e-5, rtol=1e-4)


def test_splitting_places_undoes_joining_them() -> None:
    x = torch.randn(2, 8, 16, 3)
    assert torch.equal(split_places(join_places(x, 4), 4), x)
    assert torch.equal(join_places(x, 4)[0, 1, 2].view(4, 4, 3), x[0, 4:8, 8:12])


@pytest.mark.parametrize(
    ("config", "offset"), [(DREAMER, -0.5), (V3, 0.0), (PATCHES, 0.0)], ids=["dreamer", "v3", "patches"]
)
@pytest.mark.parametrize(("likelihood", "factor"), [("mse", 1.0), ("normal", 0.5)])
def test_loss_is_the_squared_error_summed_over_each_observation(
    config: CoderConfig, offset: float, likelihood: str, factor: float
) -> None:
    boxes = {"a": VECTOR, "b": picture(), "c": NUMBER, "d": picture(channels=1)}
    decoder = Decoder(FEATURES, boxes, replace(config, likelihood=likelihood), DETER)
    features, observed = torch.randn(2, 3, FEATURES), observations(boxes, 2, 3)
    means, losses = decoder(features), decoder.loss(features, observed)
    for key in boxes:
        target = observed[key] / 255 + offset if key in "bd" else symlog(observed[key])
        for b, t in np.ndindex(2, 3):
            expected = factor * ((means[key][b, t] - target[b, t]).double() ** 2).sum()
            assert losses[key][b, t].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("config", [DREAMER, V3, PATCHES], ids=["dreamer", "v3", "patches"])
def test_a_decoder_that_hits_its_target_gives_the_observation_back(
    config: CoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = {"a": VECTOR, "b": picture()}
    decoder, observed = Decoder(FEATURES, boxes, config, DETER), observations(boxes, 4)
    offset = -0.5 if config.image == "dreamer" else 0.0
    assert decoder.vectors is not None
    hit = ImageDecoder()
    hit.offset, hit.forward = offset, lambda _: observed["b"] / 255 + offset  # type: ignore[method-assign]
    monkeypatch.setattr(decoder, "pictures", hit)
    monkeypatch.setattr(decoder.vectors, "forward", lambda _: symlog(observed["a"]))
    features = torch.zeros(4, FEATURES)
    drawn, losses = decoder.observation(features), decoder.loss(features, observed)
    assert torch.equal(drawn["b"], observed["b"])
    torch.testing.assert_close(drawn["a"], observed["a"])
    assert all(loss.abs().max() < 1e-6 for loss in losses.values())


@pytest.mark.parametrize("config", [DREAMER, V3, PATCHES], ids=["dreamer", "v3", "patches"])
def test_drawn_pictures_are_the_means_as_bytes(config: CoderConfig) -> None:
    decoder, features = Decoder(FEATURES, {"b": picture()}, config, DETER), torch.randn(3, FEATURES)
    mean = decoder(features)["b"] + (0.5 if config.image == "dreamer" else 0.0)
    assert torch.equal(decoder.observation(features)["b"], (255 * mean).round().clamp(0, 255).to(torch.uint8))


def test_means_outside_the_range_are_clamped_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(8, {"observation": picture()}, DREAMER)
    assert decoder.pictures is not None
    monkeypatch.setattr(
        decoder.pictures, "forward", lambda x: x.new_tensor([-0.7, 0.7])[:, None, None, None].repeat(1, 64, 64, 3)
    )
    drawn = decoder.observation(torch.zeros(2, 8))["observation"]
    assert (drawn[0] == 0).all()
    assert (drawn[1] == 255).all()


def test_symlog_is_what_the_configuration_says() -> None:
    large = {"observation": torch.full((1, 3), 1e6)}
    raw = Encoder({"observation": VECTOR}, CoderConfig(symlog=False, norm="none"))
    squashed = Encoder({"observation": VECTOR}, CoderConfig(symlog=True, norm="none"))
    squashed.load_state_dict(raw.state_dict())
    assert raw(large).abs().max() > 1000 * squashed(large).abs().max()
    decoder = Decoder(8, {"observation": VECTOR}, CoderConfig(symlog=False))
    features = torch.randn(4, 8)
    assert torch.equal(decoder(features)["observation"], decoder.observation(features)["observation"])


@ALL
def test_gradients_reach_every_parameter_and_the_features(config: CoderConfig) -> None:
    boxes = {"a": VECTOR, "b": picture(), "c": NUMBER}
    encoder, decoder = Encoder(boxes, config), Decoder(FEATURES, boxes, config, DETER)
    features, observed = torch.randn(2, 2, FEATURES, requires_grad=True), observations(boxes, 2, 2)
    (
        encoder(observed).square().sum() + sum(loss.sum() for loss in decoder.loss(features, observed).values())
    ).backward()
    assert features.grad is not None
    assert (features.grad != 0).any(0).all()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_bfloat16_keeps_parameters_and_gradients_in_float32_and_close() -> None:
    boxes = {"observation": picture()}
    exact, fast = (Decoder(8, boxes, replace(DREAMER, bfloat16=b)) for b in (False, True))
    fast.load_state_dict(exact.state_dict())
    features, observed = torch.randn(8, 8), observations(boxes, 8)
    gradients = []
    for decoder in (exact, fast):
        decoder.loss(features, observed)["observation"].mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None]))
    assert gradients[1].dtype == torch.float32
    assert functional.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99


@pytest.mark.parametrize(
    ("boxes", "config", "words"),
    [
        ({"camera": picture(84, 84)}, DREAMER, ["84x84", "64x64", "ResizeObservation"]),
        ({"camera": picture(84, 84)}, V3, ["84x84", "multiples of 16", "ResizeObservation"]),
        ({"camera": picture(84, 84)}, PATCHES, ["84x84", "multiples of 16", "ResizeObservation"]),
        ({"near": picture(), "far": picture(96, 96)}, V3, ["near", "far", "one size"]),
    ],
)
def test_pictures_of_a_wrong_size(boxes: dict[str, spaces.Box], config: CoderConfig, words: list[str]) -> None:
    for make in (lambda: Encoder(boxes, config), lambda: Decoder(FEATURES, boxes, config, DETER)):
        with pytest.raises(ImageSizeError) as error:
            make()
        assert all(word in str(error.value) for word in words)


def test_the_v3_decoder_asks_for_the_deterministic_size() -> None:
    with pytest.raises(ValueError, match="deter_size"):
        Decoder(FEATURES, {"observation": picture()}, V3)


def test_a_decoder_gives_what_is_asked_for_and_nothing_else() -> None:
    boxes = {"image": spaces.Box(0, 255, (64, 64, 3), np.uint8), "state": spaces.Box(-1, 1, (3,), np.float32)}
    decoder = Decoder(8, boxes, CoderConfig(units=8, depth=2))
    features = torch.randn(5, 8)
    whole, part = decoder.observation(features), decoder.observation(features, ["state"])
    assert list(part) == ["state"]
    torch.testing.assert_close(part["state"], whole["state"])
    target = {"state": torch.zeros(5, 3)}
    assert list(decoder.loss(features, target)) == ["state"]


@pytest.mark.parametrize("config", [DREAMER, V3, PATCHES], ids=["dreamer", "v3", "patches"])
def test_a_processor_without_bfloat16_computes_in_float32_what_asks_for_it(
    config: CoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = {"observation": picture()}
    encoder = Encoder(boxes, replace(config, bfloat16=True))
    plain = Encoder(boxes, config)
    plain.load_state_dict(encoder.state_dict())
    seen = observations(boxes, 2)
    assert not torch.equal(encoder(seen), plain(seen))
    let_it_multiply_bfloat16(monkeypatch, False)
    assert torch.equal(encoder(seen), plain(seen))
