"""Networks that turn observations into one vector and features back into observations.

An observation is a dictionary of boxes (`wmgym.spaces.as_dict_space`): uint8 pictures (H, W, C), vectors and
single numbers. All pictures go through one convolutional network (side by side as channels), all vectors through
one fully connected network.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.choices import check_literals
from wmgym.nets.distributions import symexp, symlog
from wmgym.nets.images import (
    DreamerImageDecoder,
    DreamerImageEncoder,
    ImageNet,
    ImageSizeError,
    ImageStyle,
    V3ImageDecoder,
    V3ImageEncoder,
    picture_error,
)
from wmgym.nets.mlp import MLP, Activation, Init, Norm
from wmgym.nets.patches import PatchImageDecoder, PatchImageEncoder
from wmgym.spaces import is_image

Likelihood = Literal["mse", "normal"]
_ROWS = 128
"""Pictures that a processor draws at once: what it does with so many stays in its cache, and takes half the time."""

_ImageEncoder = DreamerImageEncoder | V3ImageEncoder | PatchImageEncoder
_ImageDecoder = DreamerImageDecoder | V3ImageDecoder | PatchImageDecoder
_IMAGE_ENCODERS: dict[ImageNet, type[_ImageEncoder]] = {
    "dreamer": DreamerImageEncoder,
    "v3": V3ImageEncoder,
    "patches": PatchImageEncoder,
}


@dataclass(frozen=True)
class CoderConfig:
    """The shape of an encoder and of the decoder that mirrors it.

    Attributes:
        units: width of the fully connected layers (vectors).
        layers: number of hidden layers of them.
        act: their activation by name.
        norm: their normalisation by name.
        init: first weights by name, of every layer.
        symlog: squash vectors by symlog on the way in and predict them in symlog space on the way out.
        likelihood: reconstruction loss of one number: "mse" is its squared error (DreamerV3), "normal" is half of
            that, the negative log-density of a Normal of variance 1 up to a constant (PlaNet, Dreamer V1 and V2).
        image: network for pictures: the convolutions of "dreamer" (PlaNet, Dreamer V1 and V2; 64x64) or "v3"
            (multiples of 16), or "patches", linear layers over patches (multiples of 16; the fastest).
        depth: channels of the first convolution ("dreamer"), half of them ("v3"), a sixth ("patches").
        image_act: activation of the convolutions.
        image_norm: normalisation of them, over the channels.
        bfloat16: compute the convolutions in bfloat16 (parameters, inputs and outputs stay float32).
        squash: end the "dreamer" picture decoder in a sigmoid, as World Models does.
    """

    units: int = 200
    layers: int = 2
    act: Activation = "silu"
    norm: Norm = "layer"
    init: Init = "torch"
    symlog: bool = True
    likelihood: Likelihood = "mse"
    image: ImageNet = "dreamer"
    depth: int = 32
    image_act: Activation = "relu"
    image_norm: Norm = "none"
    bfloat16: bool = False
    squash: bool = False

    def __post_init__(self) -> None:
        check_literals(self)


PATCHES: dict[str, Any] = {"image": "patches", "image_act": "silu", "image_norm": "layer"}
"""What of a `CoderConfig` makes pictures go through layers over patches, as the flagship has them."""


def normal_coder(units: int, layers: int, act: Activation, depth: int, image_act: Activation = "relu") -> CoderConfig:
    """What PlaNet, DreamerV1 and V2 have in common: no normalisation, Glorot's weights, Normal likelihoods.

    Example:
        >>> normal_coder(units=400, layers=2, act="elu", depth=32).likelihood
        'normal'
    """
    return CoderConfig(
        units=units,
        layers=layers,
        act=act,
        norm="none",
        init="glorot",
        symlog=False,
        likelihood="normal",
        depth=depth,
        image_act=image_act,
    )


class Encoder(nn.Module):
    """One vector for every observation.

    Args:
        boxes: the observation's boxes by key (`wmgym.spaces.as_dict_space`).
        config: sizes and choices.

    Attributes:
        out_size: width of the vector.

    Raises:
        ImageSizeError: if the network cannot read pictures of this size, or pictures differ in size.

    Example:
        >>> encoder = Encoder({"observation": spaces.Box(-1, 1, (3,))}, CoderConfig(units=16))
        >>> encoder({"observation": torch.zeros(4, 5, 3)}).shape
        torch.Size([4, 5, 16])
    """

    def __init__(self, boxes: Mapping[str, spaces.Box], config: CoderConfig) -> None:
        super().__init__()
        self.config = config
        self._vectors, self._pictures = _split(boxes)
        self._numbers = {key for key, box in boxes.items() if box.shape == ()}
        self.vectors: MLP | None = None
        self.pictures: _ImageEncoder | None = None
        self.out_size = 0
        if self._vectors:
            c = config
            self.vectors = MLP(sum(self._vectors.values()), None, c.layers, c.units, c.act, c.norm, c.init)
            self.out_size += self.vectors.out_size
        if self._pictures:
            self.pictures = _IMAGE_ENCODERS[config.image](_joined_shape(self._pictures), _style(config))
            self.out_size += self.pictures.out_size

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Encodes observations.

        Args:
            observation: by key, pictures (..., H, W, C) uint8, vectors (..., N), single numbers (...).

        Returns:
            (..., out_size) float32.
        """
        parts = []
        if self.vectors is not None:
            parts.append(self.vectors(self._join_vectors(observation)))
        if self.pictures is not None:
            pictures = _join_pictures(observation, self._pictures)
            encoded = self.pictures(pictures.reshape(-1, *pictures.shape[-3:]))
            parts.append(encoded.reshape((*pictures.shape[:-3], self.pictures.out_size)))
        return torch.cat(parts, -1)

    def _join_vectors(self, observation: Mapping[str, Tensor]) -> Tensor:
        parts = [
            observation[key].float().unsqueeze(-1) if key in self._numbers else observation[key].float()
            for key in self._vectors
        ]
        joined = torch.cat(parts, -1)
        return symlog(joined) if self.config.symlog else joined


class Decoder(nn.Module):
    """Observations as features predict them.

    Args:
        feature_size: width of the features.
        boxes: the observation's boxes by key (`wmgym.spaces.as_dict_space`).
        config: sizes and choices.
        deter_size: how many of the features, from the first, are the deterministic state. DreamerV3's image
            network reads the two parts apart and needs it; the others ignore it.

    Raises:
        ImageSizeError: if the network cannot draw pictures of this size, or pictures differ in size.
        ValueError: if `deter_size` is missing for `image="v3"`.

    Example:
        >>> decoder = Decoder(8, {"observation": spaces.Box(-1, 1, (3,))}, CoderConfig(units=16))
        >>> decoder.loss(torch.zeros(4, 5, 8), {"observation": torch.zeros(4, 5, 3)})["observation"].shape
        torch.Size([4, 5])
    """

    def __init__(
        self,
        feature_size: int,
        boxes: Mapping[str, spaces.Box],
        config: CoderConfig,
        deter_size: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self._vectors, self._pictures = _split(boxes)
        self._shapes = {key: box.shape for key, box in boxes.items()}
        self.vectors: MLP | None = None
        self.pictures: _ImageDecoder | None = None
        if self._vectors:
            c = config
            size = sum(self._vectors.values())
            self.vectors = MLP(feature_size, size, c.layers, c.units, c.act, c.norm, c.init)
        if self._pictures:
            self.pictures = _image_decoder(feature_size, _joined_shape(self._pictures), config, deter_size)

    def forward(self, features: Tensor, keys: Collection[str] | None = None) -> dict[str, Tensor]:
        """Means of the observations in the space that the loss is taken in.

        Args:
            features: (..., feature_size) float32.
            keys: which observations are wanted; None: all. Networks that draw none of them do not run.

        Returns:
            By key, in the shape of the observations, float32: pictures in [-0.5, 0.5] ("dreamer") or [0, 1] ("v3"),
            vectors after symlog where the configuration says so.
        """
        return {key: mean.float() for key, mean in self._means(features, keys).items()}

    def loss(
        self, features: Tensor, observation: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Squared error of every observation given, summed over its dimensions (half of it for "normal").

        Args:
            features: (..., feature_size) float32.
            observation: by key, as for `Encoder.forward`; some of the keys are enough.
            weights: of the numbers of vectors, by key, (N,) or () each, and of the pixels of pictures,
                (..., H, W, 1) or (..., H, W, C); None, or a key left out: all 1.

        Returns:
            By key, the shape (...) of the leading dimensions; no constant is added.
        """
        means = self._means(features, observation.keys())
        weights = weights or {}
        errors = {key: self._error(key, mean, observation[key], weights.get(key)) for key, mean in means.items()}
        return {key: self.error_weight * error for key, error in errors.items()}

    @property
    def error_weight(self) -> float:
        """What a squared error counts in `loss`."""
        return 0.5 if self.config.likelihood == "normal" else 1.0

    def errors(self, features: Tensor, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Squared error of every number of the vectors given, in the space that the loss is taken in.

        Args:
            features: (..., feature_size) float32.
            observation: vectors by key, (..., N), or (...) for single numbers.

        Returns:
            By key, in the shape of the observations.
        """
        means = self._means(features, observation.keys())
        return {key: self._squared(mean, observation[key]) for key, mean in means.items()}

    def observation(self, features: Tensor, keys: Collection[str] | None = None) -> dict[str, Tensor]:
        """The expected observations, as an environment would give them.

        Args:
            features: (..., feature_size) float32.
            keys: as for `forward`.

        Returns:
            By key: pictures (..., H, W, C) uint8, vectors (..., N) and single numbers (...) float32.
        """
        rows = features.reshape(-1, features.shape[-1])
        few = self.pictures is not None and rows.device.type == "cpu" and not torch.compiler.is_compiling()
        drawn = [self._observe(part, keys) for part in (rows.split(_ROWS) if few else (rows,))]
        lead = features.shape[:-1]
        return {key: torch.cat([part[key] for part in drawn]).reshape((*lead, *self._shapes[key])) for key in drawn[0]}

    def _observe(self, features: Tensor, keys: Collection[str] | None) -> dict[str, Tensor]:
        drawn = self._means(features, keys, as_bytes=True)
        for key in drawn.keys() - self._pictures:
            mean = drawn[key].float()
            drawn[key] = symexp(mean) if self.config.symlog else mean
        return drawn

    def _means(self, features: Tensor, keys: Collection[str] | None, as_bytes: bool = False) -> dict[str, Tensor]:
        """As `forward`, but pictures may be bfloat16; or, `as_bytes`, drawn as uint8."""
        wanted = set(self._shapes if keys is None else keys)
        means: dict[str, Tensor] = {}
        if self.vectors is not None and not wanted.isdisjoint(self._vectors):
            means |= _cut(self.vectors(features), self._vectors)
        if self.pictures is not None and not wanted.isdisjoint(self._pictures):
            rows = features.reshape(-1, features.shape[-1])
            drawn = self.pictures.draw(rows) if as_bytes else self.pictures(rows)
            means |= _cut(drawn, {key: shape[2] for key, shape in self._pictures.items()})
        lead = features.shape[:-1]
        return {key: mean.reshape((*lead, *self._shapes[key])) for key, mean in means.items() if key in wanted}

    def _error(self, key: str, mean: Tensor, observed: Tensor, weights: Tensor | None) -> Tensor:
        shape = self._shapes[key]
        leading = mean.shape[: mean.ndim - len(shape)]
        if key in self._pictures:
            of_pixels = None if weights is None else weights.reshape(-1, *shape[:2], weights.shape[-1])
            pictures = observed.reshape(-1, *shape)
            return picture_error(mean.reshape(-1, *shape), pictures, self._offset, of_pixels).reshape(leading)
        error = self._squared(mean, observed)
        return (error if weights is None else error * weights).reshape((*leading, -1)).sum(-1)

    def _squared(self, mean: Tensor, observed: Tensor) -> Tensor:
        target = symlog(observed.float()) if self.config.symlog else observed.float()
        return (mean - target).square()

    @property
    def _offset(self) -> float:
        return 0.0 if self.pictures is None else self.pictures.offset


def _cut(joined: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Pieces of the last dimension by key."""
    if len(sizes) == 1:  # a split of one piece would still copy its gradient
        return dict.fromkeys(sizes, joined)
    return dict(zip(sizes, joined.split(list(sizes.values()), -1), strict=True))


def _style(config: CoderConfig) -> ImageStyle:
    return ImageStyle(config.depth, config.image_act, config.image_norm, config.init, config.bfloat16, config.squash)


def _image_decoder(
    feature_size: int, shape: tuple[int, int, int], config: CoderConfig, deter_size: int | None
) -> _ImageDecoder:
    if config.image == "dreamer":
        return DreamerImageDecoder(feature_size, shape, _style(config))
    if config.image == "patches":
        return PatchImageDecoder(feature_size, shape, _style(config))
    if deter_size is None:
        raise ValueError(
            "image='v3' draws from the deterministic state apart, which this world does not have (or Decoder was not "
            "given its deter_size): choose image='dreamer' or image='patches'."
        )
    return V3ImageDecoder(deter_size, feature_size - deter_size, shape, config.units, _style(config))


def _split(boxes: Mapping[str, spaces.Box]) -> tuple[dict[str, int], dict[str, tuple[int, int, int]]]:
    """Sizes of the vectors and shapes of the pictures, by key."""
    vectors = {key: (box.shape[0] if box.shape else 1) for key, box in boxes.items() if not is_image(box)}
    pictures = {key: (box.shape[0], box.shape[1], box.shape[2]) for key, box in boxes.items() if is_image(box)}
    return vectors, pictures


def _joined_shape(pictures: Mapping[str, tuple[int, int, int]]) -> tuple[int, int, int]:
    """The shape of all pictures side by side as channels."""
    sizes = {shape[:2] for shape in pictures.values()}
    if len(sizes) > 1:
        raise ImageSizeError(
            f"All pictures of an observation must have one size, but these differ: {dict(pictures)}. Resize them "
            "with gymnasium.wrappers.TransformObservation, or leave some out with FilterObservation."
        )
    height, width = sizes.pop()
    return height, width, sum(shape[2] for shape in pictures.values())


def _join_pictures(observation: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int, int]]) -> Tensor:
    parts = [observation[key] for key in shapes]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
