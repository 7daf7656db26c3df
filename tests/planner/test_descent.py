"""The minimiser: derivatives against differences, minima against scipy's, weights against repeated runs."""

import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize

from octavo.planner import descent, forms
from octavo.planner.runs import from_columns


def some_runs(seed=0, count=60, noise=0.01, experts=False):
    rng = np.random.default_rng(seed)
    params, tokens = np.exp(rng.uniform(13, 20, count)), np.exp(rng.uniform(16, 23, count))
    loss = 1.8 + 350 / params**0.34 + 900 / tokens**0.32
    columns = {"params": params, "tokens": tokens, "loss": loss * np.exp(rng.normal(0, noise, count))}
    if experts:
        columns["experts"] = 2.0 ** rng.integers(0, 6, count)
    return from_columns(columns)


def problem(name, runs):
    form = forms.form(name)
    centres = form.centres(runs)
    variables = form.variables(runs, centres)
    model = form.build(variables, np.log(runs.loss))
    return model, form.starts(variables, np.log(runs.loss), model)


@pytest.mark.parametrize("name", forms.FORMS)
def test_derivatives_are_exact(name):
    """Central differences of the objective away from the minimum; steps that do not cross the corner of the loss."""
    model, starts = problem(name, some_runs(experts=True))
    theta = starts[:2] + 0.03
    weights = np.random.default_rng(1).uniform(0.5, 2.0, (2, model.num_runs))
    gradient, exact, bound = descent._curvatures(model, theta, weights, 0.02)
    step = 1e-6
    for row in range(2):
        for j in range(model.num_constants):
            ahead, behind = theta[row : row + 1].copy(), theta[row : row + 1].copy()
            ahead[0, j] += step
            behind[0, j] -= step
            w = weights[row : row + 1]
            rise = descent.objective(model, ahead, w, 0.02) - descent.objective(model, behind, w, 0.02)
            assert gradient[row, j] == pytest.approx(rise[0] / (2 * step), rel=1e-5, abs=1e-6)
            slopes = [descent._curvatures(model, at, w, 0.02)[0][0] for at in (ahead, behind)]
            column = (slopes[0] - slopes[1]) / (2 * step)
            assert exact[row, :, j] == pytest.approx(column, rel=1e-4, abs=1e-4 * np.abs(exact[row]).max())
        assert (np.linalg.eigvalsh(bound[row]) > -1e-9 * np.abs(bound[row]).max()).all()
        assert np.allclose(
            descent.jacobian(model, theta)[row].T @ np.ones(model.num_runs), _sum_of_slopes(model, theta[row])
        )


def _sum_of_slopes(model, theta, step=1e-6):
    rows = np.stack([theta + step * unit for unit in np.eye(len(theta))])
    back = np.stack([theta - step * unit for unit in np.eye(len(theta))])
    return (descent.predict(model, rows) - descent.predict(model, back)).sum(axis=1) / (2 * step)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_minima_are_those_of_scipy(seed):
    """BFGS on a plainly written objective, from several starts, never ends lower."""
    runs = some_runs(seed)
    model, starts = problem("chinchilla", runs)
    ends = descent.minimise(model, starts)
    assert ends.converged.all()
    n, d, y = np.log(runs.params), np.log(runs.tokens), np.log(runs.loss)

    def plain(x):
        r = np.log(np.exp(x[0] - x[1] * n) + np.exp(x[2] - x[3] * d) + np.exp(x[4])) - y
        return 1e3 * np.where(np.abs(r) <= 1e-3, 0.5 * r * r, 1e-3 * (np.abs(r) - 5e-4)).sum()

    rivals = [
        scipy_minimize(plain, start, method="BFGS", options={"maxiter": 3000}).fun / 1e3
        for start in ([6, 0.34, 7, 0.32, 0.5], [5, 0.3, 6, 0.3, 0.3], [8, 0.5, 9, 0.5, 0.7])
    ]
    assert ends.objective.min() <= min(rivals) * (1 + 1e-9)
    assert ends.objective.min() == pytest.approx(min(rivals), rel=1e-3)


def test_a_weight_of_two_is_a_run_twice():
    runs = some_runs(3)
    model, starts = problem("chinchilla", runs)
    start = descent.minimise(model, starts).theta[:1]
    weights = np.ones(len(runs))
    weights[[4, 9]] = 2.0
    weights[7] = 0.0
    order = np.array([i for i in range(len(runs)) for _ in range(int(weights[i]))])
    repeated, _ = problem("chinchilla", runs.chosen(order))
    form = forms.form("chinchilla")
    weighted = descent.minimise(model, start, weights)
    listed = descent.minimise(
        repeated, descent.minimise(repeated, problem("chinchilla", runs.chosen(order))[1]).theta[:1]
    )
    assert weighted.objective[0] == pytest.approx(listed.objective[0], rel=1e-9)
    one = form.to_constants(weighted.theta, form.centres(runs))
    two = form.to_constants(listed.theta, form.centres(runs.chosen(order)))
    for name in one:
        assert one[name][0] == pytest.approx(two[name][0], rel=1e-6)


def test_many_at_once_are_each_alone():
    runs = some_runs(5)
    model, starts = problem("chinchilla", runs)
    weights = (
        np.random.default_rng(2)
        .multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=300)
        .astype(float)
    )
    together = descent.minimise(model, np.repeat(starts[:1], 300, axis=0), weights)
    for row in (0, 77, 299):
        alone = descent.minimise(model, starts[:1], weights[row])
        assert alone.theta[0].tolist() == pytest.approx(together.theta[row].tolist(), rel=1e-7)


def test_held_constants_stay():
    model, starts = problem("chinchilla", some_runs(6))
    free = np.array([True, False, True, True, True])
    start = starts[:1].copy()
    start[0, 1] = 0.4
    held = descent.minimise(model, start, free=free)
    assert held.theta[0, 1] == 0.4
    assert held.objective[0] > descent.minimise(model, start).objective[0]


def test_a_start_that_overflows_is_given_up():
    model, starts = problem("chinchilla", some_runs(7))
    wild = np.vstack([starts[0], [1e300, 1e300, 1e300, 1e300, 1e300]])
    ends = descent.minimise(model, wild)
    assert ends.converged.tolist() == [True, False]
