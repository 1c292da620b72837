"""What decides the result of a training run, and the recipes that set it."""

import math
import types
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args, get_origin, get_type_hints

from .backbones import RESNETS, TIMM, own_size
from .errors import UserError

MODELS = ("small", *RESNETS)
MODEL_NAMES = f"{', '.join(MODELS)}, or {TIMM}NAME, any of timm's"
OPTIMIZERS = ("adamw", "sgd")
REPORTS = ("last", "best")
PRECISIONS = ("float32", "bfloat16", "float16")


def _option(default, help: str, choices: tuple | None = None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """One attribute an option of the command line; the defaults are those of the recipe ``glyphs``."""

    dataset: str = _option("glyphs", "what to train on")
    data_dir: str | None = _option(None, "the folder that holds the data set")
    loss: tuple[str, ...] = _option(("ce",), "one loss or several, separated by commas")
    seeds: tuple[int, ...] = _option((0,), "seeds of weights, batches and augmentation; each loss trains once a seed")

    loss_settings: tuple[str, ...] = _option((), "settings of losses, as LOSS.NAME=VALUE, separated by commas")

    model: str = _option("small", f"the network: {MODEL_NAMES}")
    weights: str = _option(
        "none",
        "what it starts from: imagenet (downloaded; of a ResNet V1, of timm's those that belong to the name), a "
        "file, or none",
    )
    embedding_size: int = _option(64, "features in an embedding; 0 takes the network's own, without a linear layer")
    feature_norm: bool = _option(False, "batch norm without affine parameters on the network's features")
    freeze_batch_norm: bool = _option(False, "keep the statistics that the network's batch norms start with")
    dropout: float = _option(0.0, "dropout of the embeddings before the classifier of the losses ce and center")
    published_outputs: bool = _option(False, "outputs of the classifier as the authors' code counts the classes")

    epochs: int = _option(12, "passes over the training images")
    max_steps: int | None = _option(None, "steps after which to end, before the last epoch does, or none")
    batch_size: int = _option(128, "images in a batch, over all processes")
    drop_last: bool = _option(False, "leave out the last batch of an epoch where it is smaller")
    chunk: int | None = _option(None, "images that go through the network at once, or none: the whole batch")
    per_class: int = _option(4, "images of a class that come together in a batch, for losses on pairs")
    optimizer: str = _option("adamw", "the optimizer", OPTIMIZERS)
    lr: float = _option(1e-3, "learning rate, which decays to zero along a cosine")
    warmup: int = _option(0, "steps over which the learning rate rises to it")
    momentum: float = _option(0.0, "momentum of sgd")
    nesterov: bool = _option(False, "Nesterov's momentum")
    weight_decay: float = _option(0.01, "weight decay, none on one-dimensional parameters")
    label_smoothing: float = _option(0.1, "share of the target that ce and center spread over the other classes")
    center_weight: float = _option(0.003, "weight of the pull to the centres beside the cross-entropy, for center")

    image_size: int = _option(32, "side of the images that the network sees; of timm's their own, where not given")
    resize: int | None = _option(None, "size that photos are scaled to before they are cropped, or none")
    square: bool = _option(False, "scale both sides of a photo to --resize, rather than the shorter one")
    crop_scale: tuple[float, ...] = _option((0.16, 1.0), "random crops: the least and the largest share of the area")
    crop_ratio: tuple[float, ...] = _option((3 / 4, 4 / 3), "random crops: the least and the largest width / height")
    jitter: tuple[float, ...] = _option((0.0,) * 4, "colour jitter: brightness, contrast, saturation, hue")

    recall_at: tuple[int, ...] = _option((1, 2, 4, 8), "the depths k of Recall@k")
    evaluate_every: int | None = _option(None, "epochs from one look at the unseen classes to the next, or none: seven")
    evaluation_batch: int = _option(128, "images embedded at once")
    report: str = _option("last", "the evaluation that the table shows; the best by Recall@1", REPORTS)
    figure_queries: int = _option(8, "queries in retrieval.png")
    figure_neighbours: int = _option(5, "neighbours of each in retrieval.png")
    log_bounds: bool = _option(False, "measure fastpair.bounds and draw them over time")
    bounds_every: int | None = _option(None, "epochs from one measurement of the bounds to the next, or none: 24")
    bounds_images: int = _option(1024, "training images that the bounds are measured on")
    bounds_lambda: float = _option(1.0, "PCE's lambda: one all the time, so that its curve is of one function")

    device: str = _option("cpu", "a torch device, such as cpu or cuda")
    precision: str = _option("float32", "the dtype of autocast; float32 is none", PRECISIONS)
    compile: bool = _option(False, "torch.compile the network")
    workers: int = _option(0, "processes that read images")
    cache: str | None = _option(None, "a folder to keep decoded and resized photos in for the next time, or none")
    tensorboard: bool = _option(False, "write what TensorBoard shows into the run folder")

    def __post_init__(self):
        for name, kind in KINDS.items():
            if not _fits(getattr(self, name), kind):
                raise UserError(f"{flag(name)} is {getattr(self, name)!r}, but must be {describe(kind)}")
        for option in fields(self):
            choices = option.metadata["choices"]
            if choices and getattr(self, option.name) not in choices:
                raise UserError(
                    f"{flag(option.name)} is {getattr(self, option.name)!r}, but must be one of {', '.join(choices)}"
                )
        if self.model not in MODELS and not self.model.startswith(TIMM):
            raise UserError(f"--model is {self.model!r}, but must be one of {MODEL_NAMES}")
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and not (least <= number <= most and number < math.inf):
                    finite = "finite and " if isinstance(number, float) else ""
                    limits = f"between {least} and {most}" if most < math.inf else f"{finite}at least {least}"
                    raise UserError(f"{flag(name)} is {show(value)}, but must be {limits}")
        for name, length in (("crop_scale", 2), ("crop_ratio", 2), ("jitter", 4)):
            if len(getattr(self, name)) != length:
                raise UserError(f"{flag(name)} is {show(getattr(self, name))}, but must be {length} numbers")
        for name in ("loss", "seeds", "recall_at"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UserError(f"{flag(name)} is {show(values)}, but must name at least one, and none twice")
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"{flag(name)} is {show((low, high))}, but must not end below its start")
        if self.resize is not None and self.resize < self.image_size:
            raise UserError(f"--resize is {self.resize}, but must be at least --image-size, which is {self.image_size}")
        if 1 not in self.recall_at:
            raise UserError(f"--recall-at is {show(self.recall_at)}, but must name 1, by which the best is chosen")
        if self.jitter[3] > 0.5:
            raise UserError(f"--jitter is {show(self.jitter)}, but the last, of the hue, must be at most 0.5")
        if self.model == "small" and self.image_size < 8:
            raise UserError(f"--image-size is {self.image_size}, but must be at least 8 for --model small")
        for name in ("lr", "bounds_lambda", "crop_scale"):
            value = getattr(self, name)
            if 0 in (value if isinstance(value, tuple) else (value,)):
                raise UserError(f"{flag(name)} is {show(value)}, but must be positive")
        if self.dropout == 1:
            raise UserError("--dropout is 1, but must be less: nothing would be left to learn from")
        if self.nesterov and self.momentum == 0:
            raise UserError("--nesterov needs a --momentum above 0")
        if self.model == "small" and self.weights != "none":
            raise UserError(f"--weights is {self.weights}, but --model small has none to start from")

    def settings_of(self, loss: str) -> dict[str, int | float | str]:
        """The arguments that ``loss_settings`` have for a loss.

        Raises:
            UserError: one is not of the form LOSS.NAME=VALUE, or of a loss that is not trained.
        """
        found: dict[str, int | float | str] = {}
        for given in self.loss_settings:
            place, equals, value = given.partition("=")
            of, dot, name = place.partition(".")
            if not (equals and dot and name) or of not in self.loss:
                raise UserError(
                    f"--loss-settings has {given!r}, but must have LOSS.NAME=VALUE, LOSS being one of {show(self.loss)}"
                )
            if of == loss:
                found[name] = _number(value)
        return found

    def preprocessing(self) -> dict:
        """The arguments of ``data.Preprocessing``."""
        return {
            "size": self.image_size,
            "resize": self.resize,
            "square": self.square,
            "scale": self.crop_scale,
            "ratio": self.crop_ratio,
            "jitter": self.jitter,
            "cache": self.cache,
        }


KINDS: dict[str, Any] = get_type_hints(Settings)
LIMITS = {
    **dict.fromkeys(("epochs", "max_steps", "chunk", "per_class", "image_size", "resize", "recall_at"), (1, math.inf)),
    **dict.fromkeys(("evaluate_every", "evaluation_batch", "bounds_every"), (1, math.inf)),
    **dict.fromkeys(("figure_queries", "figure_neighbours"), (1, math.inf)),
    **dict.fromkeys(("embedding_size", "warmup", "workers", "lr", "weight_decay", "jitter"), (0, math.inf)),
    **dict.fromkeys(("bounds_lambda", "center_weight"), (0, math.inf)),
    **dict.fromkeys(("dropout", "label_smoothing", "momentum", "crop_scale"), (0, 1)),
    **dict.fromkeys(("batch_size", "bounds_images"), (2, math.inf)),
    "crop_ratio": (0.01, 100),
    "seeds": (0, 2**32 - 1),
}

# The cross-entropy runs of the paper (Boudiaf et al., ECCV 2020, arXiv 2003.08983, section 5 and its code).
_PAPER = {
    "model": "resnet50",
    "weights": "imagenet",
    "embedding_size": 0,
    "freeze_batch_norm": True,
    "dropout": 0.5,
    "optimizer": "sgd",
    "warmup": 100,
    "weight_decay": 5e-4,
    "image_size": 224,
    "workers": 8,
}
_PAPER_LONG = {**_PAPER, "epochs": 100, "feature_norm": True}
RECIPES: dict[str, dict[str, Any]] = {
    "glyphs": {"dataset": "glyphs"},
    "folder": {"dataset": "folder", "image_size": 64, "resize": 72, "crop_scale": (0.5, 1.0), "workers": 2},
    "cub": {
        **_PAPER,
        "dataset": "cub",
        "epochs": 30,
        "lr": 0.02,
        "resize": 256,
        "jitter": (0.25, 0.25, 0.25, 0.0),
        "recall_at": (1, 2, 4, 8, 16, 32),
    },
    "cars": {
        **_PAPER_LONG,
        "dataset": "cars",
        "lr": 0.05,
        "resize": 256,
        "square": True,
        "crop_ratio": (1.0, 1.0),
        "jitter": (0.3, 0.3, 0.3, 0.1),
        "recall_at": (1, 2, 4, 8, 16, 32),
    },
    "sop": {
        **_PAPER_LONG,
        "dataset": "sop",
        "lr": 0.003,
        "momentum": 0.99,
        "nesterov": True,
        "resize": 256,
        "square": True,
        "recall_at": (1, 10, 100, 1000),
    },
    "inshop": {
        **_PAPER_LONG,
        "dataset": "inshop",
        "lr": 0.003,
        "momentum": 0.99,
        "nesterov": True,
        "recall_at": (1, 10, 20, 30, 40, 50),
    },
}
# What the paper's runs (the authors' code, github.com/jeromerony/dml_cross_entropy) do and the recipes do not.
AS_PUBLISHED: dict[str, Any] = {
    "published_outputs": True,
    "drop_last": True,
    "evaluate_every": 1,
    "evaluation_batch": 256,
    "report": "best",
}
PUBLISHED_RECIPES = ("cub", "cars", "sop", "inshop")


def recipe_values(recipe: str, as_published: bool = False) -> dict[str, Any]:
    """What a recipe sets.

    Raises:
        UserError: the paper has no runs of this recipe.
    """
    if as_published and recipe not in PUBLISHED_RECIPES:
        raise UserError(f"--as-published is for the recipes {', '.join(PUBLISHED_RECIPES)}, not for {recipe}")
    return {**RECIPES[recipe], **(AS_PUBLISHED if as_published else {})}


def make_settings(recipe: str, given: dict[str, Any], as_published: bool = False) -> Settings:
    """The settings of a recipe, with those that were given in place of its own.

    Where no size is given, that of a network of timm's is its own, and photos are scaled in the recipe's proportion.

    Raises:
        UserError: a setting is not as it should be.
    """
    values = {**recipe_values(recipe, as_published), **given}
    return Settings(**{**values, **sizes_of_network(values, given)})


def sizes_of_network(values: dict[str, Any], given: dict[str, Any]) -> dict[str, int]:
    """The sizes that a network of timm's has of its own, in place of those in ``values`` that were not ``given``.

    Raises:
        UserError: timm is not installed, or has no such network.
    """
    own = None if "image_size" in given else own_size(str(values.get("model", Settings.model)))
    if own is None:
        return {}
    resize = values.get("resize", Settings.resize)
    if resize is None or "resize" in given:
        return {"image_size": own}
    return {"image_size": own, "resize": round(resize * own / values.get("image_size", Settings.image_size))}


def stored(settings: Settings) -> dict[str, Any]:
    """The settings as JSON keeps them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def restored(content: dict[str, Any]) -> dict[str, Any]:
    """Those settings of a run folder that ``Settings`` has; it checks them."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items() if name in KINDS
    }


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def show(value) -> str:
    """As the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(show, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(text: str) -> int | float | str:
    """The number that ``text`` is, or ``text``."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def describe(kind) -> str:
    if get_origin(kind) is tuple:
        return f"values of type {get_args(kind)[0].__name__}, separated by commas"
    if isinstance(kind, types.UnionType):
        return f"of type {get_args(kind)[0].__name__}, or none"
    return f"of type {kind.__name__}"


def _fits(value, kind) -> bool:
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(part, get_args(kind)[0]) for part in value)
    if isinstance(kind, types.UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
