"""Processes of a gloo group, forked by a server that has imported everything, and what each of them does."""

import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

import zo_kernels as zo
from tests.distributed.cells import cells_of_step, spy_on_cells
from tests.flat import flat
from tests.server import server
from zo_kernels.distributed.replicas import SPLITS, Replicas
from zo_kernels.estimators import ESTIMATORS
from zo_kernels.models import build_model
from zo_kernels.optim import ZeroOrder
from zo_kernels.transforms import momentum


def run_on_ranks(world_size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What work(rank, *arguments) returns on each rank; the text of an error in its place."""
    with tempfile.TemporaryDirectory() as folder:
        queue = server.Queue()
        processes = [
            server.Process(target=_run, args=(queue, rank, world_size, f"{folder}/store", work, arguments))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        replies = dict(queue.get(timeout=120) for _ in processes)
        for process in processes:
            process.join(60)
    return [replies[rank] for rank in range(world_size)]


def _run(queue: Any, rank: int, world_size: int, store: str, work: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
    try:
        reply = work(rank, *arguments)
    except BaseException as error:
        reply = f"{type(error).__name__}: {error}"
        if not isinstance(error, (RuntimeError, KeyError, ValueError, KeyboardInterrupt)):
            traceback.print_exc()
    queue.put((rank, reply))
    queue.close()
    queue.join_thread()
    dist.barrier()
    dist.destroy_process_group()


def make_batch() -> tuple[Tensor, Tensor]:
    tokens, targets = torch.randint(7, (2, 3, 5), generator=torch.Generator().manual_seed(1))
    return tokens, targets


def train(rank: int, kind: str, name: str, steps: int) -> bytes:
    """Trains a small model; the bits of its parameters, and of all losses it heard of."""
    sizes: dict[str, Any] = {"memory_slots": 5, "memory_width": 4} if "dnc" in name else {}
    model = build_model(name, 7, embed_dim=4, hidden_size=8, num_heads=2, seed=0, **sizes)
    options = KINDS[kind]
    if kind == "streamed":
        model.half()
    opt = ZeroOrder(model.parameters(), lr=2**-5, eps=2**-6, probes=7, seed=2, **options)
    if dist.is_initialized() and kind in SPLITS:
        opt.replicas = Replicas(split=kind, balance=True, check_every=1)
    tokens, targets = make_batch()
    heard = []
    for _ in range(steps):
        if opt.max_cosine_distance is not None:
            opt.step([model.population(tokens[i : i + 1], targets[i : i + 1]) for i in range(3)])
        elif kind in ("closure", "streamed"):
            opt.step(lambda: model.loss(tokens, targets))
        elif kind in SPLITS:
            opt.step(model.population(tokens, targets, micro_batch_size=1, segment_length=2))
        else:
            opt.step(model.population(tokens, targets))
        assert opt.last is not None
        heard.append(opt.last.losses.numpy().tobytes())
    return flat(opt.space).numpy().tobytes() + b"".join(heard)


def train_by_activities(rank: int, dtype: torch.dtype, options: dict[str, Any], size: int | None = 2) -> Any:
    """Trains a small model by activity perturbation, eight sequences in micro-batches; its bits and all losses."""
    model = zo.models.LSTM(7, 4, 8, 2, seed=0, dtype=dtype)
    opt = zo.optim.ActivityPerturbation(torch.optim.AdamW(model.parameters(), lr=0.05), probes=2, seed=3)
    batch = torch.randint(7, (2, 8, 5), generator=torch.Generator().manual_seed(1)).unbind()
    losses = [opt.step(model.activity(*batch, micro_batch_size=size, **options)) for _ in range(4)]
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()]).view(torch.uint8).numpy().tobytes()


def fail_in_activities(rank: int, failing: int, error: type[BaseException]) -> str:
    """One rank's gradient raises; nothing has changed then on any of them, and the next step is taken."""
    model = zo.models.LSTM(7, 4, 8, 2, seed=0)
    opt = zo.optim.ActivityPerturbation(torch.optim.AdamW(model.parameters(), lr=0.05), probes=1)
    batch = torch.randint(7, (2, 8, 5), generator=torch.Generator().manual_seed(1)).unbind()
    before = opt.digest()
    loss = model.activity(*batch, micro_batch_size=2)
    if rank == failing:
        loss.part_gradient = mock.Mock(side_effect=error("no batch"))  # type: ignore[method-assign]
    try:
        opt.step(loss)
    except (KeyError, KeyboardInterrupt, zo.errors.ReplicaError) as raised:
        said = f"{type(raised).__name__}: {raised}"
    assert opt.digest() == before
    assert opt.steps_taken == 0
    opt.step(model.activity(*batch, micro_batch_size=2))
    return said


def change_one_by_activities(rank: int, changed: int) -> str:
    """A parameter of one rank is not that of the others."""
    model = zo.models.LSTM(7, 4, 8, 2, seed=0)
    opt = zo.optim.ActivityPerturbation(torch.optim.AdamW(model.parameters(), lr=0.05), probes=1)
    if rank == changed:
        model.output_bias.data[0] += 1
    opt.step(model.activity(*torch.ones(2, 8, 5, dtype=torch.int64), micro_batch_size=2))
    return "nothing was noticed"


KINDS: dict[str, dict[str, Any]] = {
    "population": {"transforms": [momentum(0.5, 3)]},
    "closure": {},
    "streamed": {"mode": "streamed"},
    "batch": {},
    "both": {},
    "fd": {"estimator": ESTIMATORS["fd"]()},
    "1.5-spsa": {"estimator": ESTIMATORS["1.5-spsa"]()},
    "2-spsa": {"estimator": ESTIMATORS["2-spsa"]()},
    "agreement": {"max_cosine_distance": 1.5},
}


def record_cells(rank: int, split: str, probes: int, steps: int) -> list[list[tuple[int, int]]]:
    """The cells (probe, micro-batch) that this rank evaluates in each step; three micro-batches."""
    model = build_model("lstm", 7, embed_dim=4, hidden_size=8, num_heads=2, seed=0)
    opt = ZeroOrder(model.parameters(), lr=2**-5, probes=probes, seed=2, replicas=Replicas(split=split))
    with spy_on_cells() as cells:
        for _ in range(steps):
            opt.step(model.population(*make_batch(), micro_batch_size=1))
    found = [cells_of_step(cells, 2, step, probes) for step in range(steps)]
    assert sum(map(len, found)) == len(cells)
    return found


def count_sent_bytes(rank: int, probes: int) -> int:
    """Bytes that one step hands to the process group on this rank, of all its calls."""
    parameter = torch.nn.Parameter(torch.zeros(300))
    opt = zo.optim.CDRGE([parameter], lr=2**-6, probes=probes)
    opt.step(lambda: parameter.sum())  # with the comparison of parameters
    sent = []
    exchange = dist.ProcessGroup.alltoall_base

    def count(group: dist.ProcessGroup, received: Tensor, mine: Tensor, *more: Any) -> Any:
        sent.append(mine[1:].numel() * mine.element_size())  # not the one to itself
        return exchange(group, received, mine, *more)

    with mock.patch.object(dist.ProcessGroup, "alltoall_base", count):
        opt.step(lambda: parameter.sum())
    assert len(sent) == 1
    return sent[0]


def fail_on_one(rank: int, failing: int) -> str:
    """One rank's closure raises; theta is then what it was on all of them, and the next step is taken."""
    parameter = torch.nn.Parameter(torch.zeros(300))
    opt = zo.optim.CDRGE([parameter], lr=2**-6, probes=6)
    opt.step(lambda: parameter.sum())
    before = parameter.detach().clone()

    def loss() -> Tensor:
        if rank == failing:
            raise KeyError("no batch")
        return parameter.sum()

    try:
        opt.step(loss)
    except (KeyError, zo.errors.ReplicaError) as error:
        said = f"{type(error).__name__}: {error}"
    assert torch.equal(parameter.detach(), before)
    assert opt.steps_taken == 1
    opt.step(lambda: parameter.sum())
    return said


def interrupt_one(rank: int, stopping: int) -> str:
    """One rank gets a Ctrl-C."""
    parameter = torch.nn.Parameter(torch.zeros(300))
    opt = zo.optim.CDRGE([parameter], lr=2**-6, probes=6)

    def loss() -> Tensor:
        if rank == stopping:
            raise KeyboardInterrupt
        return parameter.sum()

    opt.step(loss)
    return "nothing was noticed"


def return_too_few_losses(rank: int) -> str:
    """A population that evaluates one probe, whatever it is asked for."""
    parameter = torch.nn.Parameter(torch.zeros(300))
    opt = zo.optim.CDRGE([parameter], lr=2**-6, probes=6)

    class One:
        def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
            return torch.ones(1, 2, dtype=torch.float64)

    opt.step(One())
    return "nothing was noticed"


def get_out_of_step(rank: int) -> str:
    """Rank 1 takes a step more than the others."""
    parameter = torch.nn.Parameter(torch.zeros(300))
    opt = zo.optim.CDRGE([parameter], lr=2**-6, probes=6)
    opt.step(lambda: parameter.sum())
    opt.steps_taken += rank == 1
    opt.step(lambda: parameter.sum())
    return "nothing was noticed"


def count_balanced_rows(rank: int, exchanges: int) -> list[int]:
    """How many of 40 rows this rank evaluates in each exchange; rank 1 takes four times as long for one."""
    replicas, counts = Replicas(balance=True), []

    def evaluate(mine: slice) -> Tensor:
        count = mine.stop - mine.start
        counts.append(count)
        time.sleep(count * (0.004 if rank == 1 else 0.001))
        return torch.arange(mine.start, mine.stop, dtype=torch.float64)

    for _ in range(exchanges):
        assert replicas.exchange(evaluate, 40, ()).tolist() == list(range(40))
    return counts


def flip_bit(rank: int, flipped: int, bit: int) -> str:
    """One bit of one replica's parameters is flipped after the first step."""
    parameter = torch.nn.Parameter(torch.ones(5000))
    opt = zo.optim.CDRGE([parameter], lr=2**-6, probes=3)
    for step in range(101):
        try:
            opt.step(lambda: 1e-3 * parameter.square().sum())
        except zo.errors.ReplicaError as error:
            return f"{step}: {error}"
        if step == 0 and rank == flipped:
            parameter.detach().view(torch.int32)[4321] ^= 1 << bit
    return "nothing was noticed"


def build_other_models(rank: int) -> str:
    """Each rank builds another model."""
    model = build_model("lstm", 7, embed_dim=4, hidden_size=8, num_heads=2, seed=rank)
    opt = zo.optim.CDRGE(model.parameters(), lr=2**-6, probes=3)
    tokens, targets = make_batch()
    opt.step(model.population(tokens, targets))
    return "nothing was noticed"


def be_late(rank: int, late_step: int) -> str:
    """Rank 1 takes longer for one step than the others wait after the first."""
    parameter = torch.nn.Parameter(torch.zeros(300))
    replicas = Replicas(timeout=0.3, start_timeout=20.0)
    opt = zo.optim.CDRGE([parameter], lr=2**-6, probes=6, replicas=replicas)

    def loss() -> Tensor:
        if rank == 1 and opt.steps_taken == late_step:
            time.sleep(0.25)  # for each of its six losses
        return parameter.sum()

    for _ in range(2):
        opt.step(loss)
    return "nothing was noticed"
