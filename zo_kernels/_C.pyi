"""The compiled module (python/module.cpp). Addresses and sizes; dtype codes are positions in backends.base.DTYPES."""

from collections.abc import Sequence

compiler: str

def probe(out: int, dtype: int, numel: int, seed: int, offset: int) -> None: ...
def apply_probe(
    x: int, x_dtype: int, out: int, out_dtype: int, numel: int, alpha: float, seed: int, offset: int
) -> None: ...
def swap_probe(
    x: int, dtype: int, numel: int, alpha: float, seed: int, next_alpha: float, next_seed: int, offset: int
) -> None: ...
def accumulate_probes(
    x: int,
    dtype: int,
    numel: int,
    quantised: int,
    seeds: int,
    num_seeds: int,
    shift: int,
    offset: int,
    undo_alpha: float,
    undo_seed: int,
    decay: float,
    grid: float,
    rounding_seed: int | None,
) -> None: ...
def probe_from(stream: int, sparsity: int, out: int, dtype: int, numel: int, seed: int, offset: int) -> None: ...
def apply_probe_from(
    stream: int,
    sparsity: int,
    x: int,
    x_dtype: int,
    out: int,
    out_dtype: int,
    numel: int,
    alpha: float,
    seed: int,
    offset: int,
) -> None: ...
def accumulate_probes_from(
    stream: int,
    sparsity: int,
    x: int,
    dtype: int,
    numel: int,
    coeffs: int,
    seeds: int,
    num_seeds: int,
    scale: float,
    offset: int,
    undo_alpha: float,
    undo_seed: int,
    decay: float,
    grid: float,
    rounding_seed: int | None,
) -> None: ...
def apply_probe_list(x: bytes, x_dtype: int, out: bytes, out_dtype: int, alpha: float, seed: int) -> None: ...
def swap_probe_list(x: bytes, dtype: int, alpha: float, seed: int, next_alpha: float, next_seed: int) -> None: ...
def accumulate_probes_list(
    x: bytes,
    dtype: int,
    quantised: int,
    seeds: int,
    num_seeds: int,
    shift: int,
    undo_alpha: float,
    undo_seed: int,
    decay: float,
    grid: float,
    rounding_seed: int | None,
) -> None: ...
def apply_probe_list_from(
    stream: int, sparsity: int, x: bytes, x_dtype: int, out: bytes, out_dtype: int, alpha: float, seed: int
) -> None: ...
def accumulate_probes_list_from(
    stream: int,
    sparsity: int,
    x: bytes,
    dtype: int,
    coeffs: int,
    seeds: int,
    num_seeds: int,
    scale: float,
    undo_alpha: float,
    undo_seed: int,
    decay: float,
    grid: float,
    rounding_seed: int | None,
) -> None: ...
def fold_probes(numel: int, seeds: int, num_seeds: int, offset: int) -> int: ...
def evaluate_population(
    cell: int,
    dtype: int,
    parameters: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    residual: bool,
    tokens: int,
    targets: int,
    batch_size: int,
    num_steps: int,
    seeds: int,
    num_seeds: int,
    num_signs: int,
    eps: float,
    bfloat16: bool,
    h: int,
    c: int,
    nats: int,
    correct: int,
    logits: int,
) -> None: ...
def evaluate_dnc(
    model: int,
    dtype: int,
    parameters: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    initial_memory: int,
    tokens: int,
    targets: int,
    batch_size: int,
    num_steps: int,
    seeds: int,
    num_seeds: int,
    num_signs: int,
    eps: float,
    states: Sequence[int],
    nats: int,
    correct: int,
) -> None: ...
def multiply(sizes: Sequence[int], a: int, strides: Sequence[int], b: int, c: int, /) -> None: ...
def perturb_activities(
    cell: int,
    sizes: Sequence[int],
    table: int,
    table_row: int,
    recurrent_weight: int,
    output_weight: int,
    output_bias: int,
    targets: int,
    batch_size: int,
    num_steps: int,
    h: int,
    c: int,
    seeds: int,
    num_seeds: int,
    first_sequence: int,
    sigma: float,
    credit_length: int,
    local_gradient: bool,
    nats: int,
    gradients: Sequence[int],
) -> None: ...
def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]: ...
def streams() -> dict[str, int]: ...
def compiled_isas() -> list[str]: ...
def supported_isas() -> list[str]: ...
def active_isa() -> str: ...
def set_isa(name: str) -> None: ...
def has_bfloat16() -> bool: ...
def max_threads() -> int: ...
def has_openmp() -> bool: ...
def cuda_build() -> str: ...
def cuda_device() -> str: ...
def cuda_problem(device: int) -> str: ...
def cuda_probe(out: int, dtype: int, numel: int, seed: int, offset: int, device: int, stream: int) -> None: ...
def cuda_apply_probe(
    x: int,
    x_dtype: int,
    out: int,
    out_dtype: int,
    numel: int,
    alpha: float,
    seed: int,
    offset: int,
    device: int,
    stream: int,
) -> None: ...
def cuda_apply_probes(
    x: int,
    x_dtype: int,
    out: int,
    out_dtype: int,
    numel: int,
    alpha: int,
    seeds: int,
    num_seeds: int,
    offset: int,
    device: int,
    stream: int,
) -> None: ...
def cuda_swap_probe(
    x: int,
    dtype: int,
    numel: int,
    alpha: float,
    seed: int,
    next_alpha: float,
    next_seed: int,
    offset: int,
    device: int,
    stream: int,
) -> None: ...
def cuda_accumulate_probes(
    x: int,
    dtype: int,
    numel: int,
    rows: int,
    num_rows: int,
    shift: int,
    offset: int,
    undo_alpha: float,
    undo_seed: int,
    decay: float,
    grid: float,
    rounding_seed: int | None,
    device: int,
    stream: int,
) -> None: ...
def cuda_apply_probe_list(
    x: int,
    x_dtype: int,
    out: int,
    out_dtype: int,
    count: int,
    num_tiles: int,
    alpha: float,
    seed: int,
    device: int,
    stream: int,
) -> None: ...
def cuda_swap_probe_list(
    x: int,
    dtype: int,
    count: int,
    num_tiles: int,
    alpha: float,
    seed: int,
    next_alpha: float,
    next_seed: int,
    device: int,
    stream: int,
) -> None: ...
def cuda_accumulate_probes_list(
    x: int,
    dtype: int,
    count: int,
    num_tiles: int,
    rows: int,
    num_rows: int,
    shift: int,
    undo_alpha: float,
    undo_seed: int,
    decay: float,
    grid: float,
    rounding_seed: int | None,
    device: int,
    stream: int,
) -> None: ...
def cuda_probe_from(
    distribution: int, sparsity: int, out: int, dtype: int, numel: int, seed: int, offset: int, device: int, stream: int
) -> None: ...
def cuda_apply_probe_from(
    distribution: int,
    sparsity: int,
    x: int,
    x_dtype: int,
    out: int,
    out_dtype: int,
    numel: int,
    alpha: float,
    seed: int,
    offset: int,
    device: int,
    stream: int,
) -> None: ...
def cuda_accumulate_probes_from(
    distribution: int,
    sparsity: int,
    x: int,
    dtype: int,
    numel: int,
    rows: int,
    num_rows: int,
    scale: float,
    offset: int,
    undo_alpha: float,
    undo_seed: int,
    decay: float,
    grid: float,
    rounding_seed: int | None,
    device: int,
    stream: int,
) -> None: ...
def cuda_apply_probe_list_from(
    distribution: int,
    sparsity: int,
    x: int,
    x_dtype: int,
    out: int,
    out_dtype: int,
    count: int,
    num_tiles: int,
    alpha: float,
    seed: int,
    device: int,
    stream: int,
) -> None: ...
def cuda_accumulate_probes_list_from(
    distribution: int,
    sparsity: int,
    x: int,
    dtype: int,
    count: int,
    num_tiles: int,
    rows: int,
    num_rows: int,
    scale: float,
    undo_alpha: float,
    undo_seed: int,
    decay: float,
    grid: float,
    rounding_seed: int | None,
    device: int,
    stream: int,
) -> None: ...
def cuda_resident_embed_dim(device: int) -> int: ...
def cuda_resident_bytes(sizes: Sequence[int], batch_size: int) -> tuple[int, int]: ...
def cuda_resident_parts(batch_size: int, num_steps: int, steps_at_once: int) -> int: ...
def cuda_resident(
    parameters: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    rows: int,
    tokens: int,
    targets: int,
    batch_size: int,
    num_steps: int,
    steps_at_once: int,
    seeds: int,
    num_seeds: int,
    eps: float,
    h: int,
    c: int,
    scratch: int,
    nats: int,
    device: int,
    stream: int,
) -> None: ...
