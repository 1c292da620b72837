"""open_clip's contrastive losses. Features may be of any length: its models scale them, its losses do not."""

from __future__ import annotations

from torch import Tensor

from fastpair import ops
from fastpair.losses.info_nce import scaled_info_nce
from fastpair.losses.rows import own_rows_related
from fastpair.patching.core import Case, Client, Method
from fastpair.patching.tensors import is_number, tensor_cases

SHAPES = "image and text features differ in number, or logit_scale or logit_bias is not one number"


def _clip_loss(loss, image_features, text_features, logit_scale, logit_bias=None, output_dict=False):
    """Softmax over rows and columns of logit_scale x·y. With several ranks over those of all, for every row and column,
    or, with ``local_loss``, for this rank's."""

    def one_sided(anchors: Tensor, others: Tensor, symmetric: bool = False) -> Tensor:
        return scaled_info_nce(anchors, others, logit_scale, symmetric, distance="dot")

    images, texts = _gathered(loss, image_features, text_features)
    if loss.world_size > 1 and loss.local_loss:
        first = loss.rank * len(image_features)
        # Each anchor's own row has its number on the other side.
        images, texts = images.roll(-first, 0), texts.roll(-first, 0)
        value = (one_sided(image_features, texts) + one_sided(text_features, images)) / 2
    else:
        value = one_sided(images, texts, symmetric=True)
    if isinstance(logit_bias, Tensor):
        # The softmax does not depend on it. DistributedDataParallel expects a gradient for every parameter.
        value = value + 0 * logit_bias.to(value.dtype).sum()
    return {"contrastive_loss": value} if output_dict else value


def _gathered(loss, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    if loss.world_size == 1:
        return image_features, text_features
    from open_clip import loss as module

    return module.gather_features(
        image_features,
        text_features,
        local_loss=loss.local_loss,
        gather_with_grad=loss.gather_with_grad,
        rank=loss.rank,
        world_size=loss.world_size,
        use_horovod=loss.use_horovod,
    )


def _clip_features(image_features, text_features, logit_scale, logit_bias=None, output_dict=False):
    return image_features, text_features


def _clip_shapes(loss, image_features, text_features, logit_scale, logit_bias=None, output_dict=False) -> bool:
    return not (
        len(image_features) == len(text_features)
        and is_number(logit_scale)
        and (logit_bias is None or is_number(logit_bias))
    )


def _siglip_loss(loss, image_features, text_features, logit_scale, logit_bias=None, negative_only=False) -> Tensor:
    params = [logit_scale, 0.0 if logit_bias is None else logit_bias]
    return ops.pair_loss(
        "sigmoid", params, image_features, own_rows_related(image_features, text_features), "dot", "mean"
    )


def _siglip_features(image_features, text_features, logit_scale, logit_bias=None, negative_only=False):
    return image_features, text_features


def _siglip_shapes(loss, image_features, text_features, logit_scale, logit_bias=None, negative_only=False) -> bool:
    return _clip_shapes(loss, image_features, text_features, logit_scale, logit_bias)


def _of_another_rank(loss, image_features, text_features, logit_scale, logit_bias=None, negative_only=False) -> bool:
    return negative_only


CLIENT = Client(
    "open_clip_torch",
    (
        Method(
            "open_clip.loss:ClipLoss",
            "forward",
            "info_nce_loss",
            _clip_loss,
            calls=(*tensor_cases(_clip_features), Case(SHAPES, _clip_shapes)),
            uses=("get_logits", "get_ground_truth"),
            reads=("open_clip.loss:gather_features",),
        ),
        Method(
            "open_clip.loss:SigLipLoss",
            "_loss",
            "siglip_loss",
            _siglip_loss,
            calls=(
                *tensor_cases(_siglip_features),
                Case(SHAPES, _siglip_shapes),
                Case("the texts are those of another rank", _of_another_rank),
            ),
            uses=("get_logits", "get_ground_truth"),
        ),
    ),
    known={
        "ClipLoss.forward": ("b6f61b9e7408", "b014a8e63a70"),
        "SigLipLoss._loss": ("c77b78f8d536",),
    },
    left={"DistillClipLoss": "it needs the logits of teacher and student whole"},
)
