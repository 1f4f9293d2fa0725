"""What a run will need, before anything is loaded: bytes per phase on each device, and seconds where a rate is known.

`plan` adds up what the code of each phase holds at its peak:

    load      weights, frozen reference, fp32 masters, moments: there from the first step to the last
    generate  keys and values of prompts and answers, one packed row of prompts, logits: as many answers at once as the
              engine would choose with what is left free (`rollouts.seating`)
    evaluate  the same with one answer per prompt
    score     one packed row without gradient, one tile of the head
    update    gradients, what autograd keeps of a packed row per view with gradient, the tower's graphs, tiles
    optimize  gradients, and what the optimizer needs besides its states

It is an upper bound in lengths (all prompts as long as allowed, all answers of full length) and an estimate in bytes;
`benchmarks/plan.py` compares it with measured peaks.

Several devices are planned as `--load.shard` uses them (`model/sharding.py`): the language model's weights (in fp32, as
masters), gradients, states and reference divided, the tower a copy on each; one unit gathered at a time, and the whole
language model while answers are sampled; prompts dealt out. Machines are taken to have eight devices each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmrl.model.budget import CPU_SHARE, GIB, Budget, Costs
from mmrl.model.decoding import LARGEST_BLOCK
from mmrl.model.logprobs import CPU_TILE_BYTES, GPU_TILE_SHARE
from mmrl.model.preparing import HELD
from mmrl.model.sharding import Shard, cut_bytes, fits_a_machine
from mmrl.model.sizes import Sizes
from mmrl.rollouts.seating import Fill, Lengths, fill, pieces
from mmrl.training.optim import Optim, moment_bytes

PER_MACHINE = 8
"""Devices of a machine, where there are more."""
CPU_PROCESS = int(0.8 * GIB)
"""Resident memory of a process that has imported torch and transformers (measured, CUDA build of torch)."""
CUDA_PROCESS = int(0.6 * GIB)
"""A CUDA context with the libraries' own buffers (not measured by us)."""
SPARE = 0.05
"""Share of a device that is left free, for what an allocator cannot use."""
RATED_GRAPH = 40
"""Bytes per patch, block and hidden unit by which the cache rates a graph (`vision_tower.GRAPH_BYTES`)."""


@dataclass(frozen=True)
class Device:
    """Where a run shall fit."""

    kind: str = "cuda"
    """"cuda" or "cpu"."""
    memory: int = 80 * GIB
    """Bytes of one device: all of them for CUDA, those that are free for a CPU."""
    count: int = 1
    """How many."""
    flops: float | None = None
    """Measured rate of one device in FLOP/s; without it no seconds are told."""
    bandwidth: float | None = None
    """Measured bytes that one device reads per second; without it no seconds of sampling are told."""

    @property
    def usable(self) -> int:
        """Bytes that a run may take on each device."""
        return int(self.memory * (1 - SPARE))

    @property
    def process(self) -> int:
        """Bytes that are gone before the model comes."""
        return CPU_PROCESS if self.kind == "cpu" else CUDA_PROCESS

    @property
    def tile(self) -> int:
        """Bytes of a tile of the head."""
        return CPU_TILE_BYTES if self.kind == "cpu" else self.memory // GPU_TILE_SHARE


@dataclass(frozen=True)
class Work:
    """One step, in numbers. Lengths are the largest that may occur."""

    prompts: int = 16
    """Prompts per rollout (P), of all devices together."""
    group: int = 8
    """Answers per prompt (G)."""
    prompt_tokens: int = 1024
    """Tokens of a prompt, visual ones included."""
    visual_tokens: int = 512
    """Of these, visual ones."""
    answer_tokens: int = 1024
    """Tokens of an answer."""
    updates: int = 1
    """Optimizer steps per rollout."""
    tokens_per_pass: int = 16384
    """Most tokens of one packed row."""
    rows_at_once: int = 256
    """Most answers that are sampled side by side."""
    sampled: bool = True
    """Are answers sampled, or given (supervised)?"""
    trained: bool = True
    """Are there updates, or answers only?"""
    evaluated: int = 256
    """Held-out prompts."""
    graphs: int = 1
    """Views of a row whose graphs are held together in an update: the raw one, and branches with gradient."""
    scored: int = 0
    """Views that are scored without gradient once per rollout."""
    reference: bool = False
    """Is there a frozen copy of the weights?"""
    tiles: int = 1
    """Tiles of the head that are alive together: 1, or 2 with an exact divergence."""
    pictures: int = 1
    """Versions of a picture that are held for a step: the raw one, and one per branch."""


@dataclass(frozen=True)
class Settings:
    """Switches that change memory and little or nothing else."""

    checkpointing: bool | None = None
    """Recompute activations; None turns it on for large models, as a load does."""
    offload_reference: bool = False
    """Keep the reference's layers in the CPU's memory."""
    memory: int | None = None
    """Bytes that work may take beside weights and optimizer; None divides what is free."""
    workers: int = 0
    """Processes that read prompts ahead of each device's steps."""
    shard: Shard = "auto"
    """How several devices share the weights."""
    optim: Optim = field(default_factory=Optim)


@dataclass(frozen=True)
class Plan:
    """Bytes of each phase on each device, by what holds them."""

    device: Device
    phases: Mapping[str, Mapping[str, int]]
    host: Mapping[str, int] = field(default_factory=dict)
    """Bytes in the CPU's memory; empty where that is the device."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds per step of the phases whose rate is known."""

    def bytes(self, phase: str) -> int:
        """All bytes of a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.bytes)

    @property
    def needed(self) -> int:
        """Bytes of that phase."""
        return self.bytes(self.peak)

    @property
    def fits(self) -> bool:
        """Is there room for it?"""
        return self.needed <= self.device.usable

    @property
    def cannot(self) -> bool:
        """Is there no room even for what does not depend on how long prompts and answers turn out to be?"""
        surely = [name for name in ("load", "update", "optimize") if name in self.phases]
        return max(self.bytes(name) for name in surely) > self.device.memory


def plan(sizes: Sizes, work: Work, settings: Settings, device: Device) -> Plan:
    """What a run will need."""
    share = _Shares(sizes, work, settings, device)
    standing = share.standing()
    phases: dict[str, Mapping[str, int]] = {"load": standing}
    if work.sampled:
        prompts = math.ceil(work.prompts / device.count)
        phases["generate"] = {
            **standing,
            **share.whole(),
            **share.sampling(prompts, work.group, keeps_graph=True),
        }
    if work.evaluated:
        prompts = math.ceil(work.evaluated / device.count)
        phases["evaluate"] = {
            **standing,
            **share.whole(),
            **share.sampling(prompts, 1, keeps_graph=False),
        }
    if work.trained:
        if work.scored:
            phases["score"] = standing | share.scoring()
        phases["update"] = standing | share.update()
        phases["optimize"] = standing | share.optimize()
    return Plan(device, phases, share.host(), _seconds(share))


@dataclass(frozen=True)
class _Shares:
    """What one device holds."""

    sizes: Sizes
    work: Work
    settings: Settings
    device: Device

    @property
    def checkpointing(self) -> bool:
        asked = self.settings.checkpointing
        return self.sizes.checkpoints if asked is None else asked

    @property
    def half(self) -> bool:
        return self.sizes.itemsize < 4

    def standing(self) -> dict[str, int]:
        """What is there from the first step to the last."""
        held = self.loaded()
        return (
            {**held, "features": self._features(self.work.prompts)}
            if self.work.trained
            else held
        )

    def loaded(self) -> dict[str, int]:
        """The same without what pictures need."""
        sizes, each = self.sizes, self.divided
        held = {"process": self.device.process, "weights": self._weights()}
        if each > 1:
            # The unit that computes and the one that is fetched meanwhile.
            held["gathered"] = 2 * sizes.largest * sizes.itemsize
        if self.work.reference:
            held["reference"] = self._reference()
        if not self.work.trained:
            return held
        optim, trained = self.settings.optim, self._stepped
        if optim.masters and self.half:
            # The shards of several devices are masters themselves.
            held["masters"] = 4 * (trained if each == 1 else sizes.tower_trainable)
        held["moments"] = int(moment_bytes(optim, sizes.itemsize) * trained)
        return held

    def whole(self) -> dict[str, int]:
        """What is gathered for sampling."""
        sizes = self.sizes
        if self.divided == 1:
            return {}
        return {"gathered": (sizes.parameters - sizes.tower) * sizes.itemsize}

    @property
    def divided(self) -> int:
        """Over how many devices the language model is cut."""
        sizes, count, how = self.sizes, self.device.count, self.settings.shard
        if how == "off":
            return 1
        learning = sizes.trainable - sizes.tower_trainable
        held = cut_bytes(learning, sizes.parameters - sizes.tower - learning, sizes.itemsize)
        memory = self.device.memory if self.device.kind == "cuda" else None
        machines, left_over = divmod(count, PER_MACHINE)
        several = machines > 1 and not left_over
        roomy = how == "hybrid" or (how == "auto" and fits_a_machine(held, PER_MACHINE, memory))
        return PER_MACHINE if several and roomy else count

    @property
    def _stepped(self) -> int:
        """Weights that the optimizer of one device steps."""
        divided = self.sizes.trainable - self.sizes.tower_trainable
        return self.sizes.tower_trainable + divided // self.divided

    def _weights(self) -> int:
        """The model's weights; shards of trained ones are as wide as the optimizer wants them."""
        sizes, each = self.sizes, self.divided
        if each == 1:
            return sizes.parameters * sizes.itemsize
        learning = sizes.trainable - sizes.tower_trainable if self.work.trained else 0
        resting = sizes.parameters - sizes.tower - learning
        shards = learning * max(4, sizes.itemsize) + resting * sizes.itemsize
        return sizes.tower * sizes.itemsize + shards // each

    @property
    def costs(self) -> Costs:
        """What the engine reckons with."""
        sizes = self.sizes
        return Costs.of(
            itemsize=sizes.itemsize,
            layers=sizes.layers,
            keys_values=sizes.keys_values,
            hidden=sizes.hidden,
            widest=sizes.intermediate,
            vocabulary=sizes.vocabulary,
            tower_hidden=sizes.tower_hidden,
            tower_intermediate=sizes.tower_intermediate,
            patch_numbers=sizes.patch_numbers,
            carried=sizes.carried,
        )

    @property
    def budget(self) -> Budget:
        """What the engine will find free, or was given."""
        if self.settings.memory is not None:
            return Budget.of(self.settings.memory)
        # Sampling begins when the weights are whole.
        loaded = self.loaded() | self.whole()
        # Moments are not there when it looks, but it knows of them.
        later = loaded.pop("moments", 0) + (self._gradients() if self.work.trained else 0)
        free = self.device.memory - sum(loaded.values())
        if self.device.kind == "cpu":
            free = int(free * CPU_SHARE)
        return Budget.of(free - later)

    def filled(self, prompts: int, group: int) -> tuple[Fill, list[int]]:
        """How so many prompts are sampled, and how many of them are read in each packed row."""
        work = self.work
        lengths = [Lengths(work.prompt_tokens, self._patches(1))] * prompts
        block = LARGEST_BLOCK[self.device.kind]
        at_once = (work.answer_tokens, work.rows_at_once, block)
        found = fill(lengths, group, *at_once, self.costs, self.budget)
        there = range(min(prompts, math.ceil(found.rows / group)))
        return found, [len(one) for one in pieces(there, lengths, self.costs, self.budget)]

    def sampling(self, prompts: int, group: int, *, keeps_graph: bool) -> dict[str, int]:
        """Prompts and as many of their answers as advance together."""
        sizes, work, costs = self.sizes, self.work, self.costs
        found, read = self.filled(prompts, group)
        tokens = read[0] * work.prompt_tokens
        prefill = self._forward(tokens) + tokens * sizes.hidden * sizes.itemsize
        room = found.room * found.block * costs.token
        answers = found.rows * work.answer_tokens * costs.token
        reading = {
            "keys and values": room + tokens * costs.token,
            "prefill": max(prefill, self._tower_forward(read[0])),
        }
        # Who waits is read while others advance.
        if found.rows < prompts * group or len(read) > 1:
            reading["answers"] = answers
        decoding = {
            "keys and values": room,
            # While buffers grow, a layer is there twice.
            "answers": answers + answers // sizes.layers,
            "logits": found.rows * costs.row,
        }
        if costs.carried:
            reading["states"] = decoding["states"] = (found.most + found.rows) * costs.carried
        graphs = self._tower_graphs(work.prompts) if keeps_graph else {}
        return {**max((reading, decoding), key=lambda part: sum(part.values())), **graphs}

    def scoring(self) -> dict[str, int]:
        """One packed row without gradient."""
        row = self._row()
        return {"row": self._forward(row), "head": self._head(row)}

    def update(self) -> dict[str, int]:
        """One packed row with gradient."""
        sizes, work, row = self.sizes, self.work, self._row()
        kept = row * sizes.layer_graph
        per_view = sizes.layers * kept
        again = 0
        if self.checkpointing and sizes.layer_graph:
            # The input of each layer, and one layer computed again.
            per_view = sizes.layers * row * sizes.hidden * sizes.itemsize
            again = kept
        # Of linear attention a copy of the prompt's state for each answer, in all layers or in the one computed again.
        states = self._runs(row) * sizes.carried
        if self.checkpointing:
            again += states // sizes.layers
        else:
            per_view += states
        # Embedded tokens, last states, the norm before the head, and their gradients.
        ends = 8 * row * sizes.hidden * sizes.itemsize
        graphs = work.graphs * (per_view + ends)
        working = again + self._forward(row)
        return {
            "gradients": self._gradients(),
            "graphs": graphs,
            "one layer": working,
            "head": self._head(row),
            **self._tower_graphs(self._media(row)),
        }

    def optimize(self) -> dict[str, int]:
        """Gradients beside the optimizer's states."""
        held = {"gradients": self._gradients()}
        optim = self.settings.optim
        if optim.eight_bit or not optim.masters:
            # torchao widens one parameter at a time: weight, gradient and both moments.
            held["widened"] = 16 * min(self.sizes.largest, self.sizes.trainable)
        return held

    def host(self) -> dict[str, int]:
        """What lies in the CPU's memory while the model is on CUDA."""
        sizes, work = self.sizes, self.work
        if self.device.kind == "cpu":
            return {}
        held = {
            "process": CPU_PROCESS,
            "weights while loading": sizes.parameters * sizes.itemsize,
            "pictures of a step": work.prompts * self._pictures(),
        }
        if workers := self.settings.workers * self.device.count:
            # The next step's lie ready, up to a limit.
            ready = min(work.prompts * self._pictures(), HELD * self.device.count)
            held |= {"pictures ahead": ready, "workers": workers * CPU_PROCESS}
        if work.reference and self.settings.offload_reference:
            held["reference"] = sizes.language * sizes.itemsize
        return held

    def _reference(self) -> int:
        sizes = self.sizes
        whole = sizes.parameters * sizes.itemsize
        if self.divided > 1:
            tower = sizes.tower * sizes.itemsize
            offload = self.settings.offload_reference and self.device.kind != "cpu"
            return tower + (0 if offload else (whole - tower) // self.divided)
        if not self.settings.offload_reference or self.device.kind == "cpu":
            return whole
        # Layers come one by one.
        one = sizes.language // sizes.layers
        return whole - (sizes.language - one) * sizes.itemsize

    def _gradients(self) -> int:
        each = max(4, self.sizes.itemsize)
        # Of several devices, the unit whose gradient is still to be divided, and the same once more on its way.
        undivided = 2 * min(self.sizes.largest, self.sizes.trainable)
        return each * (self._stepped + (undivided if self.divided > 1 else 0))

    def _row(self) -> int:
        """Tokens of the longest packed row."""
        work = self.work
        group = work.prompt_tokens + work.group * work.answer_tokens
        groups = math.ceil(work.prompts / work.updates / self.device.count)
        alone = work.prompt_tokens + work.answer_tokens
        # An answer that does not fit with its prompt stands alone.
        return min(groups * group, max(work.tokens_per_pass, alone))

    def _runs(self, row: int) -> int:
        """Prompts and answers of a packed row."""
        group = self.work.prompt_tokens + self.work.group * self.work.answer_tokens
        return math.ceil(row * (1 + self.work.group) / group)

    def _media(self, row: int) -> int:
        """Prompts of a packed row that bring their pictures: at least one."""
        group = self.work.prompt_tokens + self.work.group * self.work.answer_tokens
        return max(1, row // group)

    def _forward(self, tokens: int) -> int:
        """What one layer holds while it computes: three widths of its MLP, or attention, beside the rows."""
        sizes = self.sizes
        return tokens * (3 * sizes.intermediate + 3 * sizes.hidden) * sizes.itemsize

    def _head(self, row: int) -> int:
        """States that predict, and tiles of logits."""
        sizes, work = self.sizes, self.work
        share = work.group * work.answer_tokens
        answers = row * share // (work.prompt_tokens + share)
        logits = answers * sizes.vocabulary * max(4, sizes.itemsize)
        tile = min(max(self.device.tile, sizes.vocabulary * 4), logits)
        states = 2 * work.graphs * answers * sizes.hidden * sizes.itemsize
        return states + work.tiles * tile

    def _patches(self, prompts: int) -> int:
        return prompts * self.work.visual_tokens * self.sizes.merge**2

    def _pixels(self) -> int:
        """Bytes of one prompt's patches as they are kept: uint8, as for clips (half of it for pictures)."""
        return self._patches(1) * self.sizes.patch_numbers

    def _pictures(self) -> int:
        """Bytes of one prompt's pictures: decoded (taken to be as large as they are shown), and each way of seeing."""
        return self._pixels() * (1 + self.work.pictures)

    def _features(self, prompts: int) -> int:
        sizes = self.sizes
        prompts = math.ceil(prompts / self.device.count)
        rows = prompts * self.work.visual_tokens * (1 + sizes.deepstack)
        held = min(rows * sizes.hidden * sizes.itemsize, self.budget.features)
        if self.device.kind == "cpu":
            held += prompts * self._pictures()
        return held

    def _tower_forward(self, prompts: int) -> int:
        """What one block holds while it computes, and the patches."""
        sizes = self.sizes
        each = 3 * sizes.tower_intermediate + 4 * sizes.tower_hidden + sizes.patch_numbers
        return self._patches(prompts) * each * sizes.itemsize

    def _tower_graphs(self, prompts: int) -> dict[str, int]:
        """The tower's graph over the pictures of so many prompts; none if it is frozen."""
        sizes = self.sizes
        if not sizes.block_graph:
            return {}
        step = self._patches(math.ceil(self.work.prompts / self.device.count))
        rated, limit = RATED_GRAPH * step * sizes.depth * sizes.tower_hidden, self.budget.graphs
        # Graphs of the whole rollout are kept for the update if they are rated small enough, else those of a row.
        patches = step if rated <= limit else self._patches(prompts) * self.work.graphs
        if rated > limit and prompts == self.work.prompts:
            return {}
        each = sizes.depth * sizes.block_graph
        if self.checkpointing:
            each = sizes.block_graph + sizes.depth * sizes.tower_hidden * sizes.itemsize
        return {"tower's graphs": patches * each}


def _seconds(share: _Shares) -> dict[str, float]:
    """Seconds per step at the measured rates of the device; nothing without them."""
    sizes, work, device = share.sizes, share.work, share.device
    found: dict[str, float] = {}
    answers = work.prompts * work.group * work.answer_tokens
    tokens = work.prompts * work.prompt_tokens + answers
    head = sizes.vocabulary * sizes.hidden
    if device.flops:
        rate = device.flops * device.count
        if work.sampled:
            prompts = 2 * sizes.active * work.prompts * work.prompt_tokens
            found["prefill"] = prompts / rate
        once = 2 * (sizes.active * tokens + head * answers)
        if work.trained and work.scored:
            found["score"] = work.scored * once / rate
        if work.trained:
            # A backward costs two forwards, one where the weights themselves do not learn; checkpointing one more.
            backward = 2 if sizes.trainable > sizes.parameters // 2 else 1
            passes = 1 + backward + int(share.checkpointing)
            found["update"] = work.graphs * once * passes / rate
    if device.bandwidth and work.sampled:
        prompts = math.ceil(work.prompts / device.count)
        rounds = prompts * work.group / share.filled(prompts, work.group)[0].rows
        read = sizes.parameters * sizes.itemsize
        found["decode"] = max(1.0, rounds) * work.answer_tokens * read / device.bandwidth
    return found
