"""Products and roots in the processes of runs: right for every shape, gradient and type."""

from __future__ import annotations

import subprocess
import sys

import pytest

from companion.lab.processes import child_environment

# Executed in a process of its own, since the replacement lasts as long as the process.
CHECKS = {
    "values": """
for a, b in [
    (torch.randn(3, 4), torch.randn(4, 5)),
    (torch.randn(4, 3).T, torch.randn(5, 4).T),
    (torch.randn(6, 8)[::2, ::2], torch.randn(4, 5)),
    (torch.randn(0, 4), torch.randn(4, 5)),
    (torch.randn(3, 0), torch.randn(0, 5)),
    (torch.randn(1, 4).expand(3, 4), torch.randn(4, 1)),
]:
    exact = a.double() @ b.double()
    assert (a @ b).dtype == torch.float32
    assert torch.equal(a @ b, torch.from_numpy(np.matmul(a.numpy(), b.numpy())))
    assert torch.allclose((a @ b).double(), exact, atol=1e-5)
    c = torch.randn(b.shape[1])
    assert torch.allclose(torch.addmm(c, a, b).double(), exact + c, atol=1e-5)
    scaled = torch.addmm(c, a, b, beta=2, alpha=3).double()
    assert torch.allclose(scaled, 3 * exact + 2 * c, atol=1e-4)
stack = torch.randn(5, 3, 4), torch.randn(5, 4, 2)
assert torch.allclose(torch.bmm(*stack), torch.stack([x @ y for x, y in zip(*stack)]), atol=1e-6)
""",
    "gradients": """
layer = torch.nn.Linear(7, 3).double()
twin = torch.nn.Linear(7, 3)
twin.load_state_dict({k: v.float() for k, v in layer.state_dict().items()})
x = torch.randn(5, 7)
layer(x.double()).square().sum().backward()
twin(x).square().sum().backward()
assert torch.allclose(twin.weight.grad.double(), layer.weight.grad, atol=1e-4)
per_example = torch.func.vmap(torch.func.grad(lambda w, r: (r @ w).square().sum()), (None, 0))
found = per_example(twin.weight.detach().T, x)
assert found.shape == (5, 7, 3) and bool(found.isfinite().all())
second = torch.autograd.functional.hessian(lambda w: (x @ w).square().sum(), torch.randn(7, 1))
assert torch.allclose(second.reshape(7, 7), 2 * x.T @ x, atol=1e-4)
""",
    "other types": """
for kind in (torch.float64, torch.bfloat16, torch.int64):
    a, b = torch.ones(3, 4, dtype=kind), torch.ones(4, 2, dtype=kind)
    assert (a @ b).dtype == kind and bool(((a @ b) == 4).all())
z = torch.randn(3, 3, dtype=torch.complex64)
assert torch.allclose(z @ torch.eye(3, dtype=torch.complex64), z)
with pytest.raises((RuntimeError, ValueError)):
    torch.randn(3, 4) @ torch.randn(5, 2)
""",
    "equal inputs, equal bytes": """
a, b = torch.randn(128, 784), torch.randn(784, 64)
assert torch.equal(a @ b, a.clone() @ b.T.contiguous().T)
assert torch.equal(a @ b, a @ b)
""",
}
HEAD = """
import numpy as np, pytest, torch
from companion.lab import kernels
torch.manual_seed(0)
torch.set_num_threads(1)
kernels.install()
kernels.install()
"""


SOAK = ("values", "other types")  # the other two run the same kernels


@pytest.mark.system
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.soak) if n in SOAK else n for n in CHECKS],
)
def test_kernels_of_a_run(name: str) -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", HEAD + CHECKS[name]],
        capture_output=True,
        text=True,
        env=child_environment(is_canonical=True),
    )
    assert outcome.returncode == 0, outcome.stderr[-800:]


def test_this_process_multiplies_as_torch_does() -> None:
    import torch

    kernels = torch._C._dispatch_dump("aten::mm")
    assert "kernels.py" not in kernels
