"""One iteration of pdADMM-G against its own limits, in one run: its products alone, memory traffic, an Adam epoch.

    python benchmarks/iteration.py --nodes 20000 --hidden 256 --layers 10 --repeat 7       (about 2 min)
    python benchmarks/iteration.py --nodes 140 --inputs 7165 --hidden 100 --layers 10      (Cora's shape)

"products" are the matrix products and Cholesky factorisations that the exact form needs, on arrays of the same shapes,
as the iteration does them, "with LAPACK" those with torch.linalg's factorisations;
"traffic" is every state array (p, z, q, u, r of each layer) read and written once at the copy bandwidth measured
beside it; "Adam" is one full-batch epoch of torch.optim.Adam on the same network. "objective" are the sums of the
objective and the residuals, which the driver takes after every iteration. With ``--products bf16`` those of the limit
round their operands, too. Medians of ratios, one process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from shared import full_network, machine, random_problem, ratio, shape_parser, table, timed

from pdadmm.admm.problem import Problem
from pdadmm.admm.products import FULL, PRODUCTS, Products, make_products, transposed
from pdadmm.admm.updates import spd_inverse, spd_solve
from pdadmm.models.gamlp import GAMLP


def lapack_inverse(A: torch.Tensor) -> torch.Tensor:
    """Return A^-1 through torch.linalg alone."""
    return torch.cholesky_inverse(torch.linalg.cholesky_ex(A)[0])


def lapack_solve(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Return B A^-1 through torch.linalg alone."""
    return torch.cholesky_solve(B.mT, torch.linalg.cholesky_ex(A)[0])


def products(
    problem: Problem, first, layers: int, hidden: int, inverse: Callable = spd_inverse, solve: Callable = spd_solve,
    form: Products = FULL,
) -> Callable[[], None]:  # fmt: skip
    """Return a function that does one iteration's products and factorisations and nothing else."""
    V, C = problem.nodes, problem.classes
    outputs = [hidden] * (layers - 2) + [C]
    p, z = torch.rand(V, hidden), {n: torch.rand(V, n) for n in {hidden, C}}
    W = {n: torch.rand(n, hidden) / hidden for n in {hidden, C}}
    out, system = torch.empty(V, hidden), torch.eye(hidden) * 2
    gram, cross = torch.empty(hidden, hidden), {n: torch.empty(n, hidden) for n in W}
    a = {n: torch.empty(V, n) for n in W}

    def run() -> None:
        first.update(z[hidden])
        for n in outputs:
            torch.mm(W[n].mT, W[n], out=gram)
            inverse(system)
            form.mm(z[n], W[n], out=out)
            form.mm(out, system, out=p)
            parts = form.operand if form.centres else form.parts
            P = parts(p)
            form.mm_parts(transposed(P), P, out=gram)
            form.mm_parts(transposed(parts(z[n])), P, out=cross[n])
            solve(system, cross[n])
            form.mm_parts(P, transposed(form.operand(W[n])), out=a[n])

    return run


def adam_epoch(problem: Problem, layers: int, hidden: int) -> Callable[[], None]:
    """Return a function that does one full-batch epoch of Adam on the same network."""
    model = GAMLP([problem.inputs, *[hidden] * (layers - 1), problem.classes]).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(problem.X), problem.y, reduction="sum").backward()
        optimizer.step()

    return run


def main() -> None:
    parser = shape_parser(__doc__, repeat=7)
    parser.add_argument("--inner", type=int, default=1, help="runs per measurement: more for small shapes")
    parser.add_argument("--products", default="full", choices=PRODUCTS, help="number format of the products")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    problem = random_problem(given.nodes, given.inputs, given.classes)
    solver, network = full_network(problem, given.layers, given.hidden, products=given.products)
    form = make_products(given.products)
    state = 5 * given.nodes * given.hidden * (given.layers - 1)  # values of p, z, q, u, r in the hidden layers
    source, target = torch.ones(state), torch.empty(state)
    runs = {
        "iteration": network.iterate,
        "products": products(problem, solver.builder.first, given.layers, given.hidden, form=form),
        "products with LAPACK": products(
            problem, solver.builder.first, given.layers, given.hidden, lapack_inverse, lapack_solve, form
        ),
        "objective": network.terms,
        "traffic": lambda: target.copy_(source),
        "Adam epoch": adam_epoch(problem, given.layers, given.hidden),
    }
    seconds = timed(runs, given.repeat, given.inner)
    print(f"V = {given.nodes}, n_0 = {given.inputs}, n = {given.hidden}, L = {given.layers}, {given.threads} thread(s)")
    print(f"products {given.products}")
    print(machine(), table(seconds), sep="\n\n")
    limit = [a + b for a, b in zip(seconds["products"], seconds["traffic"], strict=True)]
    print(f"\niteration / products: {ratio(seconds['iteration'], seconds['products']):.2f}")
    print(f"iteration / products with LAPACK: {ratio(seconds['iteration'], seconds['products with LAPACK']):.2f}")
    print(f"iteration / (products + traffic): {ratio(seconds['iteration'], limit):.2f}")
    print(f"iteration / Adam epoch: {ratio(seconds['iteration'], seconds['Adam epoch']):.2f}")
    told = statistics.median(seconds["objective"]) / statistics.median(seconds["iteration"])
    print(f"objective and residuals, which are no part of training: {told:.2f} of an iteration")


if __name__ == "__main__":
    main()
