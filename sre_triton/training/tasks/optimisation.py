"""Optimisers and learning-rate schedules by the names of the options."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from sre_triton.balance import balance_steps
from sre_triton.training.options import RunOptions

__all__ = ["optimiser_and_schedules"]


def optimiser_and_schedules(
    network: nn.Module, options: RunOptions, steps: int
) -> tuple[torch.optim.Optimizer, list[tuple[lr_scheduler.LRScheduler, int]]]:
    """Builds the optimiser of a network and its schedules, each with the number of steps between two of its own. The
    rate is that of epoch ``cur_ep``.

    Args:
        steps: of the optimiser in an epoch.

    Raises:
        ValueError: more than one optimiser or schedule is asked for, or balanced steps of one that has none.
    """
    name = _one(options, ("sgd", "adam", "adamW"), "optimiser") or options.fallback_optimiser
    if name == "sgd" and options.balance_rings:
        raise ValueError("--balance-rings is for Adam, AdamW and Adadelta: the steps of --sgd are not normalised")
    parameters = network.parameters()
    settings: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
    optimiser: torch.optim.Optimizer
    if name == "sgd":
        optimiser = torch.optim.SGD(parameters, momentum=options.momentum, **settings)
    elif name == "adam":
        optimiser = torch.optim.Adam(parameters, **settings)
    elif name == "adamW":
        optimiser = torch.optim.AdamW(parameters, **settings)
    else:
        optimiser = torch.optim.Adadelta(parameters, lr=options.lr)
    if options.balance_rings:
        balance_steps(optimiser, network)
    schedules = [(_schedule(optimiser, options, steps), 1 if options.one_cycle else steps)]
    if options.warm_up:
        if options.one_cycle:
            raise ValueError(f"--warm-up {options.warm_up} with --one-cycle: its rate rises by itself")
        rise = options.warm_up * steps
        schedules.append((lr_scheduler.LinearLR(optimiser, 1 / (rise + 1), total_iters=rise), 1))
    return optimiser, schedules


def _schedule(optimiser: torch.optim.Optimizer, options: RunOptions, steps: int) -> lr_scheduler.LRScheduler:
    name = _one(options, ("cos", "one_cycle", "step", "multi_step"), "schedule")
    schedule: lr_scheduler.LRScheduler
    if name == "one_cycle":
        if options.cur_ep:
            raise ValueError(f"--one-cycle begins with the first epoch: --cur-ep {options.cur_ep} is in its midst")
        return lr_scheduler.OneCycleLR(
            optimiser, options.lr, epochs=options.epochs, steps_per_epoch=steps, cycle_momentum=False
        )
    if name == "cos":
        schedule = lr_scheduler.CosineAnnealingLR(optimiser, options.epochs, options.min_lr)
    elif name == "step":
        schedule = lr_scheduler.StepLR(optimiser, options.step_size, options.gamma)
    elif name == "multi_step":
        schedule = lr_scheduler.MultiStepLR(optimiser, options.milestones)
    else:
        schedule = lr_scheduler.ConstantLR(optimiser, 1.0)
    with warnings.catch_warnings():
        # These steps of the optimiser were those of an earlier run. A schedule that is told its last epoch instead goes
        # on from the rate of the first one.
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step")
        for _ in range(options.cur_ep):
            schedule.step()
    return schedule


def _one(options: RunOptions, names: tuple[str, ...], what: str) -> str | None:
    chosen = [name for name in names if getattr(options, name)]
    if len(chosen) > 1:
        given = " and ".join("--" + name.replace("_", "-") for name in chosen)
        raise ValueError(f"{given} ask for more than one {what}: choose one")
    return chosen[0] if chosen else None
