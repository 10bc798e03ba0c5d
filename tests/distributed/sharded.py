"""What each process of a gloo group does with its part of a sharded model."""

import gc
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import zo_kernels as zo
from tests.distributed.sharded_net import Net, make_loss, read_bits, shard_model
from zo_kernels.estimators import ESTIMATORS
from zo_kernels.optim import ZeroOrder
from zo_kernels.optim.dense import Adam, Momentum
from zo_kernels.transforms import momentum

STEPS = 2
KINDS: dict[str, dict[str, Any]] = {
    "in place": {},
    "decay": {"weight_decay": 0.25},
    "sparse": {"distribution": "sparse-4"},
    "shadow": {"mode": "shadow"},
    "normal": {"distribution": "normal"},
    "uniform, table momentum": {"distribution": "uniform", "transforms": [momentum(0.5, 2)]},
    "adam": {"dense": Adam()},
    "momentum, shadow": {"dense": Momentum(), "mode": "shadow", "weight_decay": 0.25},
    "2-spsa": {"estimator": ESTIMATORS["2-spsa"]()},
    "1.5-spsa": {"estimator": ESTIMATORS["1.5-spsa"]()},
    "agreement": {"max_cosine_distance": 2.0},
    "float64": {},
    "bfloat16": {},
    "groups": {},
}
DTYPES = {"float64": torch.float64, "bfloat16": torch.bfloat16}


def build_optimizer(kind: str, net: Net) -> ZeroOrder:
    groups: Any = net.named_parameters()
    if kind == "groups":
        groups = [
            {"params": [net.embedding.weight, net.hidden.weight], "lr": 2**-7, "eps": 2**-8},
            {"params": [net.hidden.bias, *net.norm.parameters(), net.output.weight, net.scale]},
        ]
    return ZeroOrder(groups, lr=2**-5, eps=2**-6, probes=3, seed=2, **KINDS[kind])


def train(rank: int, layout: str, kind: str, steps: int = STEPS) -> bytes:
    """The bits of the parameters, and of losses at probes and at theta."""
    net = Net(DTYPES.get(kind, torch.float32))
    loss = make_loss(shard_model(layout, net))
    opt = build_optimizer(kind, net)
    heard = []
    for _ in range(steps):
        opt.step([loss, loss] if opt.max_cosine_distance is not None else loss)
        assert opt.last is not None
        heard += [opt.last.losses, loss().detach()]  # the second leaves FSDP's root gathered
    return read_bits(net) + b"".join(x.numpy().tobytes() for x in heard)


def train_all(rank: int, layout: str) -> dict[str, bytes]:
    return {kind: train(rank, layout, kind) for kind in KINDS}


def train_on_parts(rank: int, layout: str, ranks: int) -> bytes:
    """Each process has its own part of the batch; alone, one has all of them and takes the mean of the losses."""
    net = Net()
    forward = shard_model(layout, net)
    parts = [make_loss(forward, part) for part in range(ranks)]

    def mean() -> Tensor:
        first, *others = [part() for part in parts]
        return first + sum((x - first for x in others), torch.zeros(())) / ranks

    opt = build_optimizer("in place", net)
    for _ in range(STEPS):
        opt.step(mean if layout == "plain" else parts[rank])
    return read_bits(net)


def count_closure_calls(rank: int) -> int:
    """How often one process of a 2 x 2 mesh calls the closure in a step of 3 probes."""
    net, calls = Net(), 0
    loss = make_loss(shard_model("hsdp", net))

    def count() -> Tensor:
        nonlocal calls
        calls += 1
        return loss()

    build_optimizer("in place", net).step(count)
    return calls


def resume_and_replay(rank: int, kind: str) -> list[bool]:
    """Whether a run goes on from its state, and from its coefficients alone, as it would have without a stop."""
    nets = [Net() for _ in range(3)]
    losses = [make_loss(shard_model("fsdp", net)) for net in nets]
    whole_run, resumed, replayed = (build_optimizer(kind, net) for net in nets)
    rows = []
    for step in range(4):
        whole_run.step(losses[0])
        assert whole_run.last is not None
        rows.append(whole_run.last.coeffs)
        if step == 1:
            with torch.no_grad():
                for mine, theirs in zip(resumed.space.parameters, whole_run.space.parameters, strict=True):
                    mine.copy_(theirs)
            resumed.load_state_dict(whole_run.state_dict())
    for _ in range(2):
        resumed.step(losses[1])
    for coeffs in rows:
        replayed.replay(coeffs)
    return [read_bits(nets[0]) == read_bits(other) for other in nets[1:]]


def load_other_shards(rank: int) -> bool:
    """Whether a run goes on from state that is held whole by every process, as after loading a checkpoint."""
    nets = [Net() for _ in range(2)]
    losses = [make_loss(shard_model("fsdp", net)) for net in nets]
    whole_run, resumed = (build_optimizer("momentum, shadow", net) for net in nets)
    whole_run.step(losses[0])
    with torch.no_grad():
        for mine, theirs in zip(resumed.space.parameters, whole_run.space.parameters, strict=True):
            mine.copy_(theirs)
    state = whole_run.state_dict()
    for of_parameter in state["state"].values():
        for name, x in of_parameter.items():
            if isinstance(x, DTensor):
                of_parameter[name] = x.redistribute(placements=[Replicate()] * x.device_mesh.ndim)
    resumed.load_state_dict(state)
    whole_run.step(losses[0])
    resumed.step(losses[1])
    return read_bits(nets[0]) == read_bits(nets[1])


def load_old_shards(rank: int) -> str:
    """A state of version 0.1 with other shards than these."""
    net = Net()
    shard_model("fsdp", net)
    opt = build_optimizer("shadow", net)
    spans = [(slot.offset + opt.space.start(slot), opt.space.memory(slot).numel()) for slot in opt.space.trained]
    own = {"seed": 0, "probes": 1, "steps_taken": 0, "mode": "shadow", "transforms": {}, "dense": {}}
    own |= {"slots": [(slot.offset, slot.numel) for slot in opt.space.trained], "spans": spans[::-1]}
    opt.load_state_dict({"state": {}, "param_groups": opt.state_dict()["param_groups"], "zo_kernels": own})
    return "it was loaded"


def find_bad_values(rank: int, values: list[float]) -> list[str]:
    """One process finds a value in its part before a step."""
    net = Net()
    loss = make_loss(shard_model("fsdp", net))
    opt = build_optimizer("in place", net)
    opt.step(loss)
    good = [x.clone() for x in opt.perturbation.tensors]
    said = []
    for value in values:
        with torch.no_grad():
            net.hidden.weight.add_(0.0)  # all processes take it in anew
            if rank == 1:
                net.hidden.weight.to_local()[3, 5] = value
        try:
            opt.step(loss)
            said.append("nothing was noticed")
        except ValueError as error:
            said.append(str(error))
        for x, y in zip(opt.perturbation.tensors, good, strict=True):
            x.copy_(y)
    opt.step(loss)
    assert opt.steps_taken == 2
    return said


def step_too_far(rank: int) -> str:
    """The learning rate takes parameters out of their grid's range; they stay, and training goes on."""
    net = Net()
    loss = make_loss(shard_model("fsdp", net))
    opt = build_optimizer("in place", net)
    opt.step(loss)
    before = read_bits(net)
    opt.param_groups[0]["lr"] = 2.0**10
    try:
        opt.step(loss)
    except zo.errors.GridRangeError as error:
        assert read_bits(net) == before
        opt.param_groups[0]["lr"] = 2.0**-6
        opt.step(loss)
        return str(error)
    return "nothing was noticed"


def interrupt_closure(rank: int, where: str) -> list[str]:
    """The closure raises on all processes, after the forward pass or in it; then another step is tried."""
    net, calls = Net(), 0
    loss = make_loss(shard_model("fsdp", net))
    opt = build_optimizer("in place", net)
    opt.step(loss)
    before = [x.clone() for x in opt.perturbation.tensors]

    def fail() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyError("broken")

    def failing() -> Tensor:
        value = loss()
        if where == "after":
            fail()
        return value

    if where == "in":
        net.norm.register_forward_hook(lambda *_: fail())
    said = []
    for closure in (failing, loss):
        try:
            opt.step(closure)
            said.append("")
        except (KeyError, RuntimeError) as error:
            said.append(str(error))
            assert all(torch.equal(x, y) for x, y in zip(before, opt.perturbation.tensors, strict=True))
    return said


class Largest(TorchDispatchMode):
    """The most elements that a tensor made meanwhile has."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), more: Any = None) -> Any:
        result = function(*arguments, **(more or {}))
        views = {x.untyped_storage().data_ptr() for x in arguments if type(x) is Tensor}
        if type(result) is Tensor and result.untyped_storage().data_ptr() not in views:
            self.elements = max(self.elements, result.numel())
        return result


def measure_largest_temporary(rank: int) -> tuple[int, int]:
    """Elements of the largest tensor that two steps make, and of the largest local shard."""
    net = Net()
    shard_model("fsdp", net)
    opt = build_optimizer("in place", net)
    with Largest() as largest:
        for _ in range(2):
            opt.step(lambda: 0.5)
    return largest.elements, max(x.numel() for x in opt.perturbation.tensors)


def count_searches(rank: int) -> list[int]:
    """How often an optimizer searches all objects for FSDP modules, before there is one and then.

    A class of FSDP that no module has is there from the start: parts of torch define such classes.
    """
    mixin, counts = type("Mixin", (FSDPModule,), {}), []
    with mock.patch.object(gc, "get_objects", wraps=gc.get_objects) as search:
        for layout in ("plain", "fsdp"):
            shard_model(layout, Net())
            zo.optim.CDRGE([nn.Parameter(torch.zeros(3))], lr=2**-6)
            counts.append(search.call_count)
    assert mixin in FSDPModule.__subclasses__()
    return counts


def collect_refusals(rank: int, cases: list[str]) -> list[str]:
    """The errors for what is not supported."""
    said = []
    for what in cases:
        try:
            attempt(what)
            said.append("it was not refused")
        except ValueError as error:
            said.append(str(error))
    return said


def attempt(what: str) -> None:
    mesh, net = init_device_mesh("cpu", (dist.get_world_size(),)), Net()
    if what in ("columns", "partial"):
        placement = Shard(1) if what == "columns" else Partial()
        weight = DTensor.from_local(torch.zeros(4, 3), mesh, [placement], run_check=False)
        zo.optim.CDRGE([("head.weight", nn.Parameter(weight))], lr=2**-6)
    elif what == "uneven":
        local = torch.zeros(2 + dist.get_rank(), 3)
        weight = DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=torch.Size([5, 3]), stride=(3, 1))
        zo.optim.CDRGE([("head.weight", nn.Parameter(weight))], lr=2**-6)
    elif what == "adapter":
        fully_shard(net, mesh=mesh, ignored_params={net.scale})
        zo.optim.CDRGE([("scale", net.scale)], lr=2**-6)
    elif what == "shared":
        weight = distribute_tensor(torch.zeros(4, 3), mesh, [Shard(0)])
        zo.optim.CDRGE([("a", nn.Parameter(weight)), ("b", nn.Parameter(weight))], lr=2**-6)
    elif what == "direct":
        make_loss(shard_model("fsdp", net))()
        zo.params.ParameterSpace.of(net)
    elif what == "frozen":
        shard_model("fsdp", net)
        zo.params.ParameterSpace.of(net.requires_grad_(False))
    else:
        loss = make_loss(shard_model("fsdp", net))
        if what == "gathered":
            loss()
        net.population_loss = lambda seeds, eps: None  # type: ignore[assignment]
        replicas = zo.distributed.Replicas() if what == "replicas" else None
        zo.optim.CDRGE(list(net.named_parameters()), lr=2**-6, replicas=replicas).step(net)
