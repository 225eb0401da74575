"""Second, naive implementations in float64 or with 60 digits: what the tests hold qkspec's numbers against."""

import mpmath
import numpy as np


def product_values(q, k):
    """Singular values of each q[h]' k[g], by a full SVD of the d x d' product in float64."""
    group = len(q) // len(k)
    return np.stack(
        [
            padded(np.linalg.svd(q[h].astype(float).T @ k[h // group].astype(float), compute_uv=False), q.shape[1])
            for h in range(len(q))
        ]
    )


def padded(values, size):
    """Cut or fill with zeros to size."""
    out = np.zeros(size)
    out[: min(size, len(values))] = values[:size]
    return out


def exact_values(q, k):
    """Singular values of q'k for one head (d_q, d), with 60 digits."""
    with mpmath.workdps(60):
        _, r = mpmath.qr(mpmath.matrix(q.T.tolist()), mode="skinny")
        _, s = mpmath.qr(mpmath.matrix(k.T.tolist()), mode="skinny")
        return np.array([float(x) for x in mpmath.svd_r(r * s.T, compute_uv=False)])


def orthonormal(rng, rows, columns):
    """A random rows x columns matrix with orthonormal columns."""
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def planted(rng, sigma, d, *, mixed=True):
    """One head (q, k), each (d_q, d), whose W_q'W_k has exactly the singular values sigma."""
    u, v = orthonormal(rng, d, len(sigma)), orthonormal(rng, d, len(sigma))
    root = np.sqrt(sigma)
    mix = orthonormal(rng, len(sigma), len(sigma)) if mixed else np.eye(len(sigma))
    return (mix * root) @ u.T, (mix * root) @ v.T
