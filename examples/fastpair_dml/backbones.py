"""Networks whose features are embedded: torchvision's ResNets, and any of timm's by its name."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn

from .errors import UserError

# Mean and standard deviation of the channels of ImageNet's training images.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# With the weights that --weights imagenet means.
RESNETS = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
}
TIMM = "timm:"


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier, and the images that it was made for.

    Attributes:
        network: features (n, num_features) of normalised images (n, 3, image_size, image_size).
        num_features: how many.
        mean, std: of the channels of images, whose values run from 0 to 1.
    """

    network: nn.Module
    num_features: int
    mean: Sequence[float]
    std: Sequence[float]


def resnet(name: str, weights: str) -> Backbone:
    """A ResNet of torchvision.

    Args:
        name: of ``RESNETS``.
        weights: "imagenet", "none", or a file.

    Raises:
        UserError: the weights cannot be had.
    """
    make = getattr(torchvision.models, name)
    if weights == "imagenet":
        try:
            network = make(weights=RESNETS[name])
        except OSError as error:  # no network, or no place to keep the file
            raise _not_downloaded(error, f"the file {Path(RESNETS[name].url).name}") from error
    else:
        network = make(weights=None)
    num_features = network.fc.in_features
    network.fc = nn.Identity()
    if weights not in ("imagenet", "none"):
        _load(network, weights, f"torchvision's {name}", ("fc",))
    return Backbone(network, num_features, IMAGENET_MEAN, IMAGENET_STD)


def own_size(model: str) -> int | None:
    """The side of the images that a network of timm's was made for; None of others, which take any.

    Raises:
        UserError: timm is not installed, or has no network of this name.
    """
    if not model.startswith(TIMM):
        return None
    config = _timm(model).models.get_pretrained_cfg(model.removeprefix(TIMM))
    return config.input_size[-1] if config is not None and config.input_size else 224


def timm_network(model: str, weights: str, image_size: int) -> Backbone:
    """A network of timm's, with the mean and standard deviation that its weights were made with.

    Args:
        model: its name, after ``TIMM``.
        weights: "imagenet", those that belong to the name and are downloaded; "none", or a file.
        image_size: side of the images; networks whose weights depend on it are made for it.

    Raises:
        UserError: timm is not installed or has no network of this name, the weights cannot be had, or the network does
            not make features of images of this size.
    """
    timm, name = _timm(model), model.removeprefix(TIMM)
    options = {"pretrained": weights == "imagenet", "num_classes": 0}
    try:
        try:
            size = {} if image_size == own_size(model) else {"img_size": image_size}
            network = timm.create_model(name, **options, **size)
        except TypeError:  # the network has no img_size: it takes images of any
            network = timm.create_model(name, **options)
    # timm and the hub that it downloads from have no error of their own.
    except Exception as error:
        if weights == "imagenet":
            raise _not_downloaded(error, f"a file of the weights of {name}") from error
        raise UserError(f"--model {model} cannot be made: {error}") from error
    config = timm.data.resolve_model_data_config(network)
    if weights not in ("imagenet", "none"):
        classifier = network.pretrained_cfg.get("classifier") or ()
        _load(network, weights, f"timm's {name}", (classifier,) if isinstance(classifier, str) else classifier)
    return Backbone(network, _num_features(network, model, image_size), config["mean"], config["std"])


def _timm(model: str):
    try:
        import timm
    except ImportError as error:
        raise UserError(f"--model {model} needs timm: pip install timm") from error
    name = model.removeprefix(TIMM)
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(
            f"--model is {model}, but timm {timm.__version__} has no {name!r}"
            + (f"; near it are {', '.join(near)}" if near else "")
        )
    return timm


@torch.no_grad()
def _num_features(network: nn.Module, model: str, image_size: int) -> int:
    # From an image: the attribute of this name is what comes before the pooling of some networks.
    training = network.training
    try:
        features = network.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:
        raise UserError(f"--model {model} takes no images of --image-size {image_size}: {error}") from error
    network.train(training)
    if features.ndim != 2:
        raise UserError(f"--model {model} makes features of shape {tuple(features.shape)}, but must make (n, features)")
    return features.shape[1]


def _load(network: nn.Module, file: str, what: str, classifier: Sequence[str]) -> None:
    """Load the weights of ``what``, whose classifier may be left over, from a file into ``network``."""
    if not Path(file).is_file():
        raise UserError(f"--weights is {file}, but must be imagenet, none, or a file of the weights of {what}")
    try:
        if file.endswith(".safetensors"):
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        missing, unexpected = network.load_state_dict(state.get("state_dict", state), strict=False)
    # torch.load has no error of its own: a damaged file is a RuntimeError, an EOFError, a KeyError, ...
    except Exception as error:
        raise UserError(f"--weights {file} does not hold the weights of {what}: {error}") from error
    unexpected = [name for name in unexpected if not name.startswith(tuple(f"{part}." for part in classifier))]
    for names, problem in ((missing, "it has no"), (unexpected, "it has an unknown")):
        if names:
            rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"--weights {file} does not hold the weights of {what}: {problem} {names[0]}{rest}")


def _not_downloaded(error: Exception, file: str) -> UserError:
    reason = str(error).strip().rstrip(".")
    return UserError(
        f"--weights imagenet cannot be downloaded: {reason}. Give {file} as --weights PATH, or start from --weights "
        "none"
    )
