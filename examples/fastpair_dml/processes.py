"""The processes of a run: one, or those that torchrun starts."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from .errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. With one, no call here communicates."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def from_main(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in the main process, in all of them; a UserError too."""
        if self.world == 1:
            return work()
        outcome: list = [None, None]
        if self.main:
            try:
                outcome[0] = work()
            except UserError as error:
                outcome[1] = str(error)
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        return outcome[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes."""
        if self.world == 1:
            return [value]
        values: list = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def rows_to_main(self, own: torch.Tensor, rows: list[int]) -> torch.Tensor | None:
        """The rows of all processes, in order, in the main one; None in the others.

        Args:
            own: this process's rows, of shape (rows[rank], d).
            rows: how many each process has; no two may differ by more than one.
        """
        if self.world == 1:
            return own
        # Parts of one shape, as gather needs.
        own = torch.nn.functional.pad(own, (0, 0, 0, max(rows) - len(own)))
        parts = [torch.empty_like(own) for _ in rows] if self.main else None
        dist.gather(own, parts)
        return torch.cat([part[:count] for part, count in zip(parts, rows)]) if self.main else None

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)


def on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def cores() -> float:
    """CPU cores for each of the processes that share this machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Computing in the dtype that ``precision`` names; "float32" leaves all as it is."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def start(device: str) -> tuple[Processes, torch.device]:
    """Join the processes that torchrun started, if it did, and choose this one's device.

    Raises:
        UserError: the device cannot be used.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and device.startswith("cuda"):
        if device != "cuda" or "LOCAL_RANK" not in os.environ:
            raise UserError(
                f"--device is {device}, but with {world} processes must be cuda, and the launcher must set LOCAL_RANK "
                "for each, as torchrun does"
            )
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.zeros(1, device=device).cpu()
    # An unknown name, a device that this torch was not built for, one that is not there, and one that holds no data.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    chosen = torch.device(device)
    if world == 1:
        return Processes(), chosen
    if on_gpu(chosen):
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu(chosen) else "gloo")
    return Processes(dist.get_rank(), world), chosen
