"""Optimizer steps on GPT-2 124M's shapes, one thread: `python tests/benchmarks/bench_adamw2.py [--steps N]`.

Every contender runs in one process, in turn, step by step, so that a busy machine slows them alike. Times are CPU times
of the one thread; the ratios are what to read. "straightforward" is algorithm 1 in eager operations: two products a
power iteration, K = 3, from a cold start.
"""

import argparse
import statistics
import time

import torch

from qkspec.optim.adamw2 import AdamW2


def parameters(layers, d, vocabulary, context, dtype):
    gen = torch.Generator().manual_seed(0)
    shapes = {"wte.weight": (vocabulary, d), "wpe.weight": (context, d)}
    for i in range(layers):
        shapes |= {f"h.{i}.ln_1.weight": (d,), f"h.{i}.ln_1.bias": (d,), f"h.{i}.ln_2.weight": (d,)}
        shapes |= {
            f"h.{i}.ln_2.bias": (d,),
            f"h.{i}.attn.c_attn.weight": (3 * d, d),
            f"h.{i}.attn.c_attn.bias": (3 * d,),
        }
        shapes |= {f"h.{i}.attn.c_proj.weight": (d, d), f"h.{i}.attn.c_proj.bias": (d,)}
        shapes |= {f"h.{i}.mlp.c_fc.weight": (4 * d, d), f"h.{i}.mlp.c_fc.bias": (4 * d,)}
        shapes |= {f"h.{i}.mlp.c_proj.weight": (d, 4 * d), f"h.{i}.mlp.c_proj.bias": (d,)}
    shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    named = {n: torch.nn.Parameter((0.02 * torch.randn(s, generator=gen)).to(dtype)) for n, s in shapes.items()}
    for p in named.values():
        p.grad = 1e-3 * torch.randn(p.shape, generator=gen).to(dtype)
    return named


class Straightforward(torch.optim.AdamW):
    def _norm(self, w):
        v = torch.nn.functional.normalize(torch.randn(w.shape[1], dtype=w.dtype), dim=0)
        for _ in range(3):
            v = torch.nn.functional.normalize(w.T @ (w @ v), dim=0)
        return torch.linalg.vector_norm(w @ v).item()

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["step"] += 1
                m = state["m"].lerp_(p.grad, 1 - beta1) / (1 - beta1 ** state["step"])
                v = state["v"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2) / (1 - beta2 ** state["step"])
                update = m / (v.sqrt() + group["eps"])
                alpha = lr
                if p.ndim == 2:
                    alpha = min(lr, 0.004 * self._norm(p) / self._norm(update))
                p.mul_(1 - alpha * group["weight_decay"]).sub_(update, alpha=alpha)


CONTENDERS = {
    "torch AdamW, loop": lambda n: torch.optim.AdamW(n.values(), foreach=False),
    "torch AdamW, foreach": lambda n: torch.optim.AdamW(n.values(), foreach=True),
    "torch AdamW, fused": lambda n: torch.optim.AdamW(n.values(), fused=True),
    "straightforward AdamW2": lambda n: Straightforward(n.values()),
    "AdamW2": lambda n: AdamW2(n.items()),
    "AdamW2, block 4": lambda n: AdamW2(n.items(), block=4),
    "AdamW2, block 8": lambda n: AdamW2(n.items(), block=8),
    "AdamW2, embeddings bounded": lambda n: AdamW2(n.items(), exempt=("vector",)),
    "AdamW2, batched backend": lambda n: AdamW2(n.items(), batched=True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="may be given several times")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    named = parameters(options.layers, 768, 50257, 1024, getattr(torch, options.dtype))
    wanted = ["torch AdamW, loop", *(options.only or CONTENDERS)]
    chosen = {k: make for k, make in CONTENDERS.items() if k in wanted}
    optimizers = {k: make(named) for k, make in chosen.items()}
    times = {k: [] for k in optimizers}
    for _ in range(options.steps + 2):
        for k, optimizer in optimizers.items():
            began = time.process_time()
            optimizer.step()
            times[k].append(time.process_time() - began)
    reference = statistics.median(times["torch AdamW, loop"][2:])
    for k, seconds in times.items():
        median = statistics.median(seconds[2:])
        print(f"{k:28s} {1000 * median:8.1f} ms   {median / reference:5.2f} x   first step {1000 * seconds[0]:8.0f} ms")


if __name__ == "__main__":
    main()
