"""What test_cuda.py has in place of the CUDA kernels."""

import ctypes

import torch

from zo_kernels import _C


class KernelsOnTheCpu:
    """Stands in for _C: a CUDA call does with CPU memory what the kernel does with the device's."""

    def __init__(self):
        self.queues, self.steps_at_once = [], []
        self.problem = ""

    def cuda_build(self):
        return "CUDA"

    def cuda_problem(self, device):
        assert device == 1
        return self.problem

    def cuda_probe(self, *args):
        self._at(args)
        _C.probe(*args[:-2])

    def cuda_apply_probe(self, *args):
        self._at(args)
        _C.apply_probe(*args[:-2])

    def cuda_swap_probe(self, *args):
        self._at(args)
        _C.swap_probe(*args[:-2])

    def cuda_apply_probes(self, x, x_dtype, out, out_dtype, numel, alpha, seeds, count, offset, *queue):
        self._at(queue)
        step = _read(alpha, 1, torch.float64)[0].item()
        size = [4, 8, 2, 2][out_dtype] * numel
        for i, seed in enumerate(_read(seeds, count, torch.int64).tolist()):
            for s, sign in enumerate((1, -1)):
                member = out + (2 * i + s) * size
                _C.apply_probe(x, x_dtype, member, out_dtype, numel, sign * step, seed % 2**64, offset)

    def cuda_accumulate_probes(self, x, dtype, numel, rows, count, *rest):
        self._at(rest)
        seeds, quantised = _read(rows, 2 * count, torch.int64).view(count, 2).t().contiguous()
        q = quantised.to(torch.int32).contiguous()
        _C.accumulate_probes(x, dtype, numel, q.data_ptr(), seeds.data_ptr(), count, *rest[:-2])

    def cuda_apply_probe_list(self, x, x_dtype, out, out_dtype, count, num_tiles, *rest):
        self._at(rest)
        tables = _read_list(x, count, num_tiles), x_dtype, _read_list(out, count, num_tiles), out_dtype
        _C.apply_probe_list(*tables, *rest[:-2])

    def cuda_swap_probe_list(self, x, dtype, count, num_tiles, *rest):
        self._at(rest)
        _C.swap_probe_list(_read_list(x, count, num_tiles), dtype, *rest[:-2])

    def cuda_accumulate_probes_list(self, x, dtype, list_length, num_tiles, rows, count, *rest):
        self._at(rest)
        seeds, quantised = _read(rows, 2 * count, torch.int64).view(count, 2).t().contiguous()
        q = quantised.to(torch.int32).contiguous()
        table = _read_list(x, list_length, num_tiles)
        _C.accumulate_probes_list(table, dtype, q.data_ptr(), seeds.data_ptr(), count, *rest[:-2])

    def cuda_probe_from(self, *args):
        self._at(args)
        _C.probe_from(*args[:-2])

    def cuda_apply_probe_from(self, *args):
        self._at(args)
        _C.apply_probe_from(*args[:-2])

    def cuda_accumulate_probes_from(self, kind, sparsity, x, dtype, numel, rows, count, *rest):
        self._at(rest)
        seeds, coeffs = _read(rows, 2 * count, torch.int64).view(count, 2).t().contiguous()
        table = coeffs.data_ptr(), seeds.data_ptr(), count
        _C.accumulate_probes_from(kind, sparsity, x, dtype, numel, *table, *rest[:-2])

    def cuda_apply_probe_list_from(self, kind, sparsity, x, x_dtype, out, out_dtype, count, num_tiles, *rest):
        self._at(rest)
        tables = _read_list(x, count, num_tiles), x_dtype, _read_list(out, count, num_tiles), out_dtype
        _C.apply_probe_list_from(kind, sparsity, *tables, *rest[:-2])

    def cuda_accumulate_probes_list_from(self, kind, sparsity, x, dtype, list_length, num_tiles, rows, count, *rest):
        self._at(rest)
        seeds, coeffs = _read(rows, 2 * count, torch.int64).view(count, 2).t().contiguous()
        table = _read_list(x, list_length, num_tiles)
        rows_of_cpu = coeffs.data_ptr(), seeds.data_ptr(), count
        _C.accumulate_probes_list_from(kind, sparsity, table, dtype, *rows_of_cpu, *rest[:-2])

    def cuda_resident_embed_dim(self, device):
        return 8000

    def cuda_resident_bytes(self, sizes, batch_size):
        return 1024, 256

    def cuda_resident_parts(self, batch_size, num_steps, steps_at_once):
        self.steps_at_once.append(steps_at_once)
        return 1

    def cuda_resident(
        self, parameters, sizes, rows, tokens, targets, batch, steps, at_once, seeds, n, eps, h, c, scratch, nats, *rest
    ):
        self._at(rest)
        assert scratch
        assert h or at_once == steps
        vocab_size, embed_dim, heads, head_dim, num_rows = sizes
        token_of_row = _read(rows, num_rows, torch.int64)
        index, targets = (_read(x, steps * batch, torch.int32).view(steps, batch).t() for x in (tokens, targets))
        tokens, targets = token_of_row[index].contiguous(), targets.long().contiguous()
        weights, shape = [*parameters, *[(0, -1)] * 5], [vocab_size, embed_dim, 1, heads, head_dim]
        data = tokens.data_ptr(), targets.data_ptr()
        _C.evaluate_population(
            0, 0, weights, shape, False, *data, batch, steps, seeds, n, 2, eps, False, h, c, nats, 0, 0
        )

    def _at(self, args):
        self.queues.append(tuple(args[-2:]))


def _read(address, count, dtype):
    """A copy of `count` numbers."""
    size = dtype.itemsize
    return torch.frombuffer(bytearray(ctypes.string_at(address, size * count) or b" " * size), dtype=dtype)[:count]


def _read_list(address, count, num_tiles):
    """The table of the CPU's kernels from that of the GPU's."""
    addresses, numels, blocks, tiles = _read(address, 4 * count, torch.int64).view(count, 4).t()
    ends = [*tiles[1:].tolist(), num_tiles]
    assert [end - first for first, end in zip(tiles.tolist(), ends, strict=True)] == (-(-numels // 4096)).tolist()
    return torch.stack((addresses, numels, 128 * blocks), dim=1).numpy().tobytes()
