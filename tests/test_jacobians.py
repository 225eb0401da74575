"""Proposition 1 and appendix B of the paper against finite differences: as printed and as they should read."""

import numpy as np
import pytest

D, D_Q, N, D_V = 5, 3, 4, 2


@pytest.fixture(scope="module")
def w():
    rng = np.random.default_rng(0)
    return {
        "q": rng.standard_normal((D_Q, D)),
        "k": rng.standard_normal((D_Q, D)),
        "v": rng.standard_normal((D_V, D)),
        "x": rng.standard_normal((D, N)),
    }


def vec(a):
    return a.reshape(-1, order="F")


def jacobian(function, at, step=1e-6):
    """d vec(function) / d vec(at) by central differences."""
    out = []
    for i in range(at.size):
        change = np.zeros(at.size)
        change[i] = step
        delta = change.reshape(at.shape, order="F")
        out.append((vec(function(at + delta)) - vec(function(at - delta))) / (2 * step))
    return np.stack(out, axis=1)


def commutation(rows, columns):
    """K with vec(X') = K vec(X) for X (rows, columns)."""
    k = np.zeros((rows * columns, rows * columns))
    for i in range(rows):
        for j in range(columns):
            k[i * columns + j, j * rows + i] = 1
    return k


def softmax(p):
    """Column-wise, as in appendix B."""
    e = np.exp(p / np.sqrt(D_Q))
    return e / e.sum(axis=0)


def off(a, b):
    return np.abs(a - b).max()


def test_eq_2_with_respect_to_the_product(w):
    found = jacobian(lambda m: w["x"].T @ m @ w["x"], w["q"].T @ w["k"])
    assert off(found, np.kron(w["x"].T, w["x"].T)) < 1e-7


def test_eq_2_with_respect_to_the_input(w):
    x, m = w["x"], w["q"].T @ w["k"]
    found = jacobian(lambda x: x.T @ m @ x, x)
    turn = commutation(D, N)
    printed = np.kron(x.T @ m, np.eye(N)) @ turn + np.kron(np.eye(N), x.T @ m)
    corrected = np.kron(x.T @ m.T, np.eye(N)) @ turn + np.kron(np.eye(N), x.T @ m)
    assert off(found, corrected) < 1e-7
    assert off(found, printed) > 1


def test_eq_3_with_respect_to_the_projections(w):
    x, q, k = w["x"], w["q"], w["k"]
    by_q = jacobian(lambda t: x.T @ t @ k @ x, q.T)
    assert off(by_q, np.kron((k @ x).T, x.T)) < 1e-7
    assert off(by_q, np.kron(x.T, (k @ x).T)) > 1, "as printed"
    by_k = jacobian(lambda t: x.T @ q.T @ t @ x, k)
    assert off(by_k, np.kron(x.T, (q @ x).T)) < 1e-7


def softmax_jacobians(a):
    diagonal = np.diag(vec(a))
    printed = (diagonal - np.kron(a, np.eye(N)) @ diagonal) / np.sqrt(D_Q)
    corrected = (diagonal - diagonal @ np.kron(np.eye(N), np.ones((N, N))) @ diagonal) / np.sqrt(D_Q)
    return printed, corrected


def test_the_softmax_of_appendix_b_is_block_diagonal(w):
    p = 0.3 * w["x"].T @ w["q"].T @ w["k"] @ w["x"]
    found = jacobian(softmax, p)
    printed, corrected = softmax_jacobians(softmax(p))
    assert off(found, corrected) < 1e-8
    assert off(found, printed) > 0.01
    blocks = found.reshape(N, N, N, N)
    assert max(np.abs(blocks[i, :, j]).max() for i in range(N) for j in range(N) if i != j) < 1e-12


def test_eq_7_inherits_both(w):
    x, q, k, v = (0.5 * w[name] for name in "xqkv")
    m = q.T @ k
    found = jacobian(lambda x: v @ x @ softmax(x.T @ m @ x), x)
    a = softmax(x.T @ m @ x)
    printed, corrected = softmax_jacobians(a)
    turn = commutation(D, N)
    inner = np.kron(np.eye(N), x.T @ m)
    assert (
        off(
            found,
            np.kron(a.T, v) + np.kron(np.eye(N), v @ x) @ corrected @ (np.kron(x.T @ m.T, np.eye(N)) @ turn + inner),
        )
        < 1e-8
    )
    assert (
        off(found, np.kron(a.T, v) + np.kron(np.eye(N), v @ x) @ printed @ (np.kron(x.T @ m, np.eye(N)) @ turn + inner))
        > 0.01
    )


def test_a_frozen_softmax_passes_no_gradient(w):
    """Appendix B: as each column nears a unit vector, the Jacobian nears zero."""
    p = w["x"].T @ w["q"].T @ w["k"] @ w["x"]
    sizes = [np.abs(softmax_jacobians(softmax(scale * p))[1]).max() for scale in (0.1, 1, 10)]
    assert sizes[0] > sizes[2]
    assert sizes[2] < sizes[0] / 20
