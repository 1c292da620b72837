"""Batches beyond memory: any loss over a batch whose activations would not fit, by gradient caching.

With embeddings z = f(x; theta), f acting on each sample by itself, and a loss L(z) of the whole batch,

    dL/dtheta = sum over chunks c of (dz_c / dtheta)^T dL/dz_c

so f has to keep activations for one chunk at a time: the embeddings are computed without a graph, dL/dz by the loss,
and then each chunk again with its graph, through which its rows of dL/dz go back.

Source: Gao et al., RepL4NLP 2021 (arXiv 2101.06983), section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from fastpair.losses import options
from fastpair.ops import checks

__all__ = ["CachedLoss"]


class CachedLoss(nn.Module):
    """``loss(encoder(inputs), ...)``, its value and gradients, with the activations of ``chunk`` samples at a time.

    ``value = CachedLoss(encoder, loss, chunk)(inputs, labels)`` is ``loss(encoder(inputs), labels)``, and
    ``value.backward()`` adds the gradients of the whole batch to those of the encoder's and the loss's parameters. Both
    are what the batch at once would give but for rounding, if the encoder treats each sample by itself. Any further
    arguments are the loss's. Whatever backward would do after the loss still works: a loss scale, a sum with other
    losses, gradients accumulated over several calls. It costs one more forward of the encoder.

    With k encoders the first k arguments are their inputs: ``CachedLoss([image_encoder, text_encoder], loss,
    chunk)(images, texts)`` is ``loss(image_encoder(images), text_encoder(texts))``. An encoder may be there twice.

    - The second forward of a chunk has the random numbers (CPU and CUDA), autocast and buffers of its first one.
      Buffers, such as the running statistics of a batch norm, change in the first forward alone.
    - Batch norm in training mode normalises with the statistics of each chunk, and is the one common layer for which
      the result depends on ``chunk``.
    - Encoders without parameters that require a gradient are not run again, nor is any under ``torch.no_grad()``.
      Inputs that require a gradient get theirs.
    - With several processes, wrap the encoders in DistributedDataParallel (DDP), not this module: each is synchronised
      once, in the last chunk. The loss is then a :class:`~fastpair.distributed.GlobalBatchLoss`. The processes may have
      different numbers of chunks, except for SyncBatchNorm. Backward belongs inside DDP's ``no_sync()``.
    - To compile, compile the encoder.

    Args:
        encoder: a module, or a list of them, whose output has a row for each sample: (n, d), of a floating dtype.
        loss: called with the embeddings of each encoder and all further arguments; a module, whose parameters are then
            in ``parameters()``, or a function.
        chunk: how many samples go through an encoder at once, at least 1.

    Inputs are tensors, or tuples, lists and dictionaries of them, with the same number of samples n along dimension 0.
    An encoder is called with one argument of the same form (mappings become dictionaries) that has the samples of a
    chunk; without samples once, with an empty one. Inputs must not change before backward.

    Raises:
        TypeError: ``encoder`` is no module or ``loss`` not callable; inputs are missing or hold something other than
            tensors; an encoder's output is no floating tensor.
        ValueError: ``chunk`` is below 1, there is no encoder, inputs hold no tensor, have no dimension 0 or different
            sizes of it, or an encoder's output is no matrix with a row a sample.
        RuntimeError: in backward, where inputs, the encoder's parameters or its training mode changed since the call
            or between chunks, as hooks that step an optimizer change them; for a second derivative, and for
            ``torch.autograd.grad`` through the encoder.
    """

    def __init__(self, encoder: nn.Module | Sequence[nn.Module], loss: Callable[..., Any], chunk: int):
        super().__init__()
        encoders = list(encoder) if isinstance(encoder, (list, tuple, nn.ModuleList)) else [encoder]
        if not encoders:
            raise ValueError("encoder must be a module or several, got none")
        for module in encoders:
            if not isinstance(module, nn.Module):
                raise TypeError(f"encoder must be a torch.nn.Module, or a list of them, got {type(module).__name__}")
        if not callable(loss):
            raise TypeError(f"loss must be a module or a function, got {type(loss).__name__}")
        options.at_least("chunk", chunk, 1)
        self.encoders = nn.ModuleList(encoders)
        self.loss = loss
        self.chunk = chunk

    def forward(self, *args, **kwargs) -> Any:
        count = len(self.encoders)
        if len(args) < count:
            raise TypeError(f"inputs must be given for {count} encoders, before other arguments, got {len(args)}")
        towers, tensors = [], []
        for i, (encoder, inputs) in enumerate(zip(self.encoders, args)):
            name = "inputs" if count == 1 else f"inputs {i}"
            of_tower = _tensors(name, inputs)
            # Towers are kept for backward, which must not keep the tensors alive once it has freed the graph.
            form = _mapped(lambda *_: torch.empty(0), name, inputs)
            towers.append(_Tower(encoder, name, form, len(of_tower), self.chunk, _learns(encoder, of_tower)))
            tensors += of_tower
        return self.loss(*_embeddings(towers, tensors), *args[count:], **kwargs)

    def extra_repr(self) -> str:
        return f"chunk={self.chunk}"


# ---- inputs


def _mapped(function: Callable[[str, Tensor], Any], name: str, inputs: Any) -> Any:
    """Inputs of the same form, with ``function(name, tensor)`` in place of each tensor."""
    if isinstance(inputs, Tensor):
        return function(name, inputs)
    if isinstance(inputs, Mapping):
        return {key: _mapped(function, f"{name}[{key!r}]", value) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        parts = [_mapped(function, f"{name}[{i}]", value) for i, value in enumerate(inputs)]
        if hasattr(inputs, "_fields"):  # a named tuple
            return type(inputs)(*parts)
        return tuple(parts) if isinstance(inputs, tuple) else parts
    raise TypeError(f"{name} must be a tensor, or a tuple, list or dictionary of tensors, got {type(inputs).__name__}")


def _tensors(name: str, inputs: Any) -> list[Tensor]:
    """The tensors in the inputs of an encoder, all with the same number of samples."""
    named: dict[str, Tensor] = {}
    _mapped(named.__setitem__, name, inputs)
    if not named:
        raise ValueError(f"{name} must hold a tensor, got an empty {type(inputs).__name__}")
    first = next(iter(named))
    for of, t in named.items():
        if t.ndim == 0:
            raise ValueError(f"{of} must have its samples along dimension 0, got a tensor without dimensions")
        if len(t) != len(named[first]):
            raise ValueError(f"{of} must have {len(named[first])} samples like {first}, got {len(t)}")
    return list(named.values())


def _learns(encoder: nn.Module, tensors: list[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*encoder.parameters(), *tensors))


@dataclass(frozen=True)
class _Tower:
    """An encoder, the name and the form of its inputs, the number of tensors in them, the samples of a chunk, and
    whether backward runs it again."""

    encoder: nn.Module
    name: str
    form: Any
    count: int
    chunk: int
    learns: bool

    def chunks(self, tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        return list(zip(*(t.split(self.chunk) for t in tensors)))

    def embed(self, parts: tuple[Tensor, ...], buffers: dict[str, Tensor]) -> Tensor:
        """The embeddings of a chunk, with ``buffers`` in place of the encoder's."""
        rest = iter(parts)
        z = functional_call(self.encoder, buffers, (_mapped(lambda *_: next(rest), self.name, self.form),))
        output = f"the output of {type(self.encoder).__name__} for {self.name}"
        checks.matrix(output, z)
        if len(z) != len(parts[0]):
            raise ValueError(f"{output} must have {len(parts[0])} rows, one a sample, got shape {tuple(z.shape)}")
        return z

    def state(self) -> tuple[list[int], list[bool]]:
        """What must not change until backward: parameters and training modes."""
        versions = [p._version for p in self.encoder.parameters() if p.requires_grad]
        return versions, [module.training for module in self.encoder.modules()]

    def check_unchanged(self, state: tuple[list[int], list[bool]]) -> None:
        if self.state() != state:
            raise RuntimeError(
                f"the parameters and the training mode of {type(self.encoder).__name__} must be those of the call "
                "until backward has run it again: they changed"
            )

    def synchronised(self) -> set[nn.Module]:
        """The modules whose backward waits for other processes."""
        if not (self.learns and dist.is_available()):
            return set()
        return {m for m in self.encoder.modules() if isinstance(m, nn.parallel.DistributedDataParallel)}


def _by_tower(towers: list[_Tower], tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    rest = iter(tensors)
    return [[next(rest) for _ in range(tower.count)] for tower in towers]


# ---- what the two forwards of a chunk have in common


class _Surroundings:
    """Autocast where this is made, and random states, of the CPU and of all CUDA devices that have tensors."""

    def __init__(self, towers: list[_Tower], tensors: Sequence[Tensor]):
        parameters = (p for tower in towers for p in tower.encoder.parameters())
        devices = {t.device for t in (*tensors, *parameters)}
        self.cuda = [device for device in devices if device.type == "cuda"]
        self.autocasts = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted({"cpu", *(device.type for device in devices)})
            if torch.amp.is_autocast_available(kind)
        ]

    def random_state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.cuda)]

    def set_random_state(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.cuda, states[1:]):
            torch.cuda.set_rng_state(state, device)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with ExitStack() as stack:
            for kind, dtype, enabled in self.autocasts:
                # Some releases of torch would keep weights that are cast without a graph for whoever then wants their
                # gradients (pytorch #112583).
                stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            yield


# ---- the two passes


def _embeddings(towers: list[_Tower], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    if not any(tower.learns for tower in towers):
        with torch.no_grad():
            return _first_pass(towers, tensors, _Surroundings(towers, tensors))[0]
    # Backward has to come even where no input requires a gradient.
    trigger = torch.empty(0, requires_grad=True)
    return _Embeddings.apply(towers, trigger, *tensors)


def _first_pass(
    towers: list[_Tower], tensors: Sequence[Tensor], around: _Surroundings
) -> tuple[tuple[Tensor, ...], list[list]]:
    """The embeddings of each tower, and the random state before each of its chunks."""
    embeddings, random = [], []
    with around.autocast():
        for tower, of_tower in zip(towers, _by_tower(towers, tensors)):
            chunks, states = [], []
            for parts in tower.chunks(of_tower):
                states.append(around.random_state())
                chunks.append(tower.embed(parts, {}))
            embeddings.append(torch.cat(chunks))
            random.append(states)
    return tuple(embeddings), random


class _Embeddings(torch.autograd.Function):
    """The embeddings of all towers. Backward runs the chunks again, and adds to the parameters' gradients itself."""

    @staticmethod
    def forward(ctx, towers, trigger, *tensors):
        ctx.towers, ctx.around = towers, _Surroundings(towers, tensors)
        ctx.buffers = {b: b.clone() for tower in towers if tower.learns for b in tower.encoder.buffers()}
        ctx.save_for_backward(*tensors)  # which also notices whether they change
        embeddings, ctx.random = _first_pass(towers, tensors, ctx.around)
        ctx.states = [tower.state() for tower in towers]
        ctx.mark_non_differentiable(*(z for z, tower in zip(embeddings, towers) if not tower.learns))
        return embeddings

    @staticmethod
    def backward(ctx, *grads):
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("CachedLoss can be differentiated once, got create_graph=True")
        if not torch.autograd._is_checkpoint_valid():
            raise RuntimeError(
                "CachedLoss adds to .grad of all parameters of its encoders: call backward(), without inputs, in place "
                "of torch.autograd.grad"
            )
        towers, tensors = ctx.towers, _by_tower(ctx.towers, ctx.saved_tensors)
        for tower, state in zip(towers, ctx.states):
            tower.check_unchanged(state)
        buffers = {b: copy.clone() for b, copy in ctx.buffers.items()}
        input_grads: list[Tensor | None] = []
        with torch.random.fork_rng(ctx.around.cuda):
            for i, (tower, *of_tower) in enumerate(zip(towers, tensors, grads, ctx.random)):
                if tower.learns:
                    later = set().union(*(another.synchronised() for another in towers[i + 1 :]))
                    input_grads += _second_pass(tower, *of_tower, ctx.around, buffers, later)
                else:
                    input_grads += [None] * tower.count
        return None, None, *input_grads


def _second_pass(
    tower: _Tower,
    tensors: list[Tensor],
    grad: Tensor,
    random: list[list[Tensor]],
    around: _Surroundings,
    buffers: dict[Tensor, Tensor],
    later: set[nn.Module],
) -> list[Tensor | None]:
    """Adds the gradients of a tower's parameters to theirs, and returns those of its tensors.

    Args:
        grad: by the embeddings.
        random: the random state before each chunk.
        buffers: what takes the place of each buffer.
        later: the modules that run again in later towers, and synchronise there.
    """
    of_encoder = {name: buffers[b] for name, b in tower.encoder.named_buffers()}
    chunks = tower.chunks(tensors)
    input_grads: list[list[Tensor]] = [[] for _ in tensors]
    for i, (parts, grad_part, state) in enumerate(zip(chunks, grad.split(tower.chunk), random)):
        parts = tuple(part.detach().requires_grad_(t.requires_grad) for part, t in zip(parts, tensors))
        around.set_random_state(state)
        with ExitStack() as stack:
            for module in tower.synchronised() if i + 1 < len(chunks) else tower.synchronised() & later:
                stack.enter_context(module.no_sync())
            with torch.enable_grad(), around.autocast():
                z = tower.embed(parts, of_encoder)
            before = tower.state()
            if z.requires_grad:
                torch.autograd.backward(z, grad_part)
            if i + 1 < len(chunks):  # which hooks that step an optimizer would spoil
                tower.check_unchanged(before)
        for part, of_chunks in zip(parts, input_grads):
            if part.requires_grad:
                of_chunks.append(torch.zeros_like(part) if part.grad is None else part.grad)
    return [torch.cat(of_chunks) if of_chunks else None for of_chunks in input_grads]
