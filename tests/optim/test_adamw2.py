import copy
import math

import pytest
import torch

from qkspec.errors import UsageError
from qkspec.optim.adamw2 import AdamW2
from qkspec.optim.direction import uses_fused
from qkspec.optim.observer import observe
from qkspec.optim.roles import Role
from qkspec.optim.sigma import fresh, key

D = 24


class Net(torch.nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(11, D)
        self.qkv = torch.nn.Linear(D, 3 * D)
        self.norm = torch.nn.LayerNorm(D)
        self.up = torch.nn.Linear(D, 2 * D)
        self.down = torch.nn.Linear(2 * D, D)
        self.to(dtype)

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = self.norm(x + torch.softmax(q @ k.mT / D**0.5, -1) @ v)
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


def train(net, opt, steps, start=0, scaler=None):
    for step in range(start, start + steps):
        tokens = torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(step))
        opt.zero_grad()
        out = net(tokens).double()
        loss = (out * torch.linspace(-1, 1, D, dtype=torch.float64)).tanh().mean() + 0.01 * out.square().mean()
        (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.step(opt)
            scaler.update()
        else:
            opt.step()
    return net


def feed(net, opt, steps, start=0):
    """The same gradients for every optimizer: a loss would feed rounding errors back, and Adam would amplify them."""
    for step in range(start, start + steps):
        gen = torch.Generator().manual_seed(step)
        for i, p in enumerate(net.parameters()):
            p.grad = (torch.randn(p.shape, generator=gen) * 10.0 ** (i % 5 - 3)).to(p.dtype)
        opt.step()


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def gap(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a, b, strict=True))


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def reference(net, steps, lr, tau, decay, inside, floor=0.01, eps=1e-8):
    """Algorithm 1 in float64 with exact norms, one matrix at a time."""
    state = {}
    for step in range(steps):
        tokens = torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(step))
        net.zero_grad()
        out = net(tokens).double()
        ((out * torch.linspace(-1, 1, D, dtype=torch.float64)).tanh().mean() + 0.01 * out.square().mean()).backward()
        for name, p in net.named_parameters():
            m, v = state.get(name, (0, 0))
            m, v = 0.9 * m + 0.1 * p.grad, 0.999 * v + 0.001 * p.grad**2
            state[name] = m, v
            mhat, vhat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            update = mhat / ((vhat + eps) ** 0.5 if inside else vhat**0.5 + eps)
            bounded = p.ndim == 2 and name != "embed.weight"
            for i in range(3 if name == "qkv.weight" else 1):
                rows = slice(i * D, (i + 1) * D) if name == "qkv.weight" else slice(None)
                w, u, alpha = p.data[rows], update[rows], lr
                if bounded:
                    sigma_w = torch.linalg.svdvals(w)[0].item()
                    sigma_u = torch.linalg.svdvals(u)[0].item()
                    sigma_w = max(sigma_w, floor * (w.shape[0] ** 0.5 + w.shape[1] ** 0.5))
                    if alpha * sigma_u / sigma_w > tau:
                        alpha = tau * sigma_w / sigma_u
                p.data[rows] = w - alpha * u - alpha * decay * w
    return net


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("eps_mode", ["outside", "inside"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_algorithm_1_in_float64(batched, eps_mode, decay):
    # block 24 spans all 24 columns, so that the estimates are exact
    net, other = Net(torch.float64), Net(torch.float64)
    opt = AdamW2(
        net.named_parameters(),
        1e-2,
        tau=0.01,
        block=D,
        refresh=1,
        eps_mode=eps_mode,
        weight_decay=decay,
        batched=batched,
    )
    train(net, opt, 25)
    reference(other, 25, 1e-2, 0.01, decay, eps_mode == "inside")
    assert gap(weights(net), weights(other)) < 1e-6
    assert 0 < opt.bound_fraction <= 1


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}, {"amsgrad": True}])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("tau", [math.inf, 1e9])
def test_without_a_bound_it_is_adamw(options, batched, tau):
    net, other = Net(), Net()
    feed(net, AdamW2(net.named_parameters(), 1e-3, tau=tau, batched=batched, **options), 100)
    feed(other, torch.optim.AdamW(other.parameters(), 1e-3, **options), 100)
    assert gap(weights(net), weights(other)) <= 1e-6
    # everything through the bounded path; in float64, since torch rounds the decay factor to single precision
    net, other = Net(torch.float64), Net(torch.float64)
    feed(net, AdamW2(net.named_parameters(), 1e-3, tau=tau, exempt=(), batched=batched, **options), 20)
    feed(other, torch.optim.AdamW(other.parameters(), 1e-3, **options), 20)
    assert gap(weights(net), weights(other)) <= 1e-12


@pytest.mark.parametrize(
    "options",
    [{"maximize": True}, {"weight_decay": 0.0}, {"capturable": True}, {"lr": torch.tensor(1e-3, dtype=torch.float64)}],
)
def test_without_a_bound_it_is_adamw_in_every_mood(options):
    net, other = Net(torch.float64), Net(torch.float64)
    feed(net, AdamW2(net.named_parameters(), tau=math.inf, exempt=(), **options), 20)
    options = {**options, "capturable": False}
    feed(other, torch.optim.AdamW(other.parameters(), foreach=False, **options), 20)
    assert gap(weights(net), weights(other)) <= 1e-12


@pytest.mark.parametrize(
    "options",
    [{}, {"block": 1}, {"certified": True}, {"block": 2, "warm": False, "power_iters": 3}, {"power_iters": 2}],
)
def test_the_batched_backend_gives_the_same_weights(options):
    net, other = Net(), Net()
    options = {"block": 4, "exempt": (), **options}
    feed(net, AdamW2(net.named_parameters(), 1e-2, **options), 25)
    feed(other, AdamW2(other.named_parameters(), 1e-2, batched=True, **options), 25)
    assert gap(weights(net), weights(other)) <= 1e-6


def test_relative_growth_per_step_is_at_most_tau():
    net = Net()
    opt = AdamW2(net.named_parameters(), 0.1, tau=0.02, weight_decay=0.0)
    for step in range(30):
        before = torch.linalg.matrix_norm(net.up.weight.detach(), 2)
        train(net, opt, 1, step)
        assert torch.linalg.matrix_norm(net.up.weight.detach(), 2) <= before * 1.0205


def test_the_groups_lr_and_the_next_tensor_are_untouched():
    net = Net()
    with torch.no_grad():
        net.up.weight.mul_(1e-3)  # hits τ at once
        net.down.weight.mul_(1e3)  # never does
    opt = AdamW2(net.named_parameters(), 1e-3, tau=0.004, floor=0)
    train(net, opt, 3)
    readings = {r.name: r for r in opt.readings()}
    assert opt.param_groups[0]["lr"] == 1e-3
    assert readings["up.weight"].bound
    assert readings["up.weight"].effective_lr < 1e-3
    assert not readings["down.weight"].bound
    assert readings["down.weight"].effective_lr == pytest.approx(1e-3)


def test_readings_are_the_true_norms():
    net = Net()
    opt = AdamW2(net.named_parameters(), 1e-2)
    assert math.isnan(opt.bound_fraction)
    assert opt.readings() == ()
    train(net, opt, 12)
    before = net.qkv.weight.detach().clone()
    train(net, opt, 1, 12)
    readings = {r.name: r for r in opt.readings()}
    assert list(readings) == ["qkv.weight[q]", "qkv.weight[k]", "qkv.weight[v]", "up.weight", "down.weight"]
    for part, block in zip("qkv", before.chunk(3), strict=True):
        assert readings[f"qkv.weight[{part}]"].sigma1_w == pytest.approx(
            torch.linalg.matrix_norm(block, 2).item(), 1e-2
        )
    assert opt.bound_fraction == sum(r.bound for r in readings.values()) / 5
    assert opt.suggest_tau(0.4) == sorted(r.relative_step for r in readings.values())[3]


def test_a_zero_matrix_learns_unless_as_printed():
    for floor, moves in ((0.01, True), (0.0, False)):
        net = Net()
        torch.nn.init.zeros_(net.down.weight)
        opt = AdamW2(net.named_parameters(), 1e-2, floor=floor)
        train(net, opt, 5)
        assert bool(net.down.weight.any()) is moves
        first = {r.name: r for r in opt.readings()}["down.weight"]
        assert first.floored is moves


def test_reading_and_random_numbers_change_nothing():
    net, other = Net(), Net()
    opt, quiet = (AdamW2(n.named_parameters(), 1e-2) for n in (net, other))
    torch.manual_seed(3)
    train(other, quiet, 15)
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    for step in range(15):
        train(net, opt, 1, step)
        opt.readings()
        torch.rand(2)
    assert same(weights(net), weights(other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batched", [False, True])
def test_a_resumed_run_is_the_same_bit_for_bit(dtype, batched, tmp_path):
    net = Net(dtype)
    opt = AdamW2(net.named_parameters(), 1e-2, block=4, batched=batched)
    train(net, opt, 13)
    torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, tmp_path / "c.pt")
    train(net, opt, 12, 13)
    again = Net(dtype)
    fresh_opt = AdamW2(again.named_parameters(), 1e-2, block=4, batched=batched)
    saved = torch.load(tmp_path / "c.pt", weights_only=True)  # noqa: TID251  # our own state, read as users do
    again.load_state_dict(saved["net"])
    fresh_opt.load_state_dict(saved["opt"])
    train(again, fresh_opt, 12, 13)
    assert same(weights(net), weights(again))


def test_state_goes_to_torch_adamw_and_back():
    net, other = Net(torch.float64), Net(torch.float64)
    ours, theirs = AdamW2(net.parameters(), 1e-3, tau=math.inf), torch.optim.AdamW(other.parameters(), 1e-3)
    feed(net, ours, 10)
    other.load_state_dict(net.state_dict())
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    feed(other, theirs, 10, 10)
    feed(net, ours, 10, 10)
    assert gap(weights(net), weights(other)) <= 1e-10
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    feed(net, ours, 5, 20)
    feed(other, theirs, 5, 20)
    assert gap(weights(net), weights(other)) <= 1e-10
    plain = torch.optim.AdamW(other.parameters())
    feed(other, plain, 1, 25)
    ours.load_state_dict(plain.state_dict())
    assert ours.param_groups[0]["tau"] == math.inf


def test_a_state_of_other_settings_is_measured_anew():
    net = Net(torch.float64)
    opt = AdamW2(net.named_parameters(), 1e-2, block=4)
    feed(net, opt, 3)
    for dtype, options in ((torch.float64, {"block": 6}), (torch.float64, {"roles": {"up*": "embedding"}}), (None, {})):
        other = Net(dtype or torch.float32)
        theirs = AdamW2(other.named_parameters(), 1e-2, **{"block": 4, **options})
        theirs.load_state_dict(copy.deepcopy(opt.state_dict()))
        before = [torch.linalg.matrix_norm(b.double(), 2).item() for b in other.qkv.weight.detach().chunk(3)]
        feed(other, theirs, 1, 3)
        assert [r.sigma1_w for r in theirs.readings()[:3]] == pytest.approx(before, 0.02)
        assert all(0 < r.effective_lr <= 1e-2 for r in theirs.readings())


def test_no_two_tensors_of_a_state_dict_share_memory():
    net = Net()
    opt = AdamW2(net.named_parameters(), exempt=(), batched=True)
    feed(net, opt, 2)
    places = [t.untyped_storage().data_ptr() for s in opt.state_dict()["state"].values() for t in s.values()]
    assert len(set(places)) == len(places)


def test_copies_schedulers_closures_and_new_groups():
    net = Net()
    opt = AdamW2(net.named_parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)
    train(net, opt, 2)
    schedule.step()
    net2, opt2 = copy.deepcopy((net, opt))
    train(net, opt, 3, 2)
    train(net2, opt2, 3, 2)
    assert same(weights(net), weights(net2))

    def closure():
        opt.zero_grad()
        loss = net(torch.zeros(1, 2, dtype=torch.long)).square().sum()
        loss.backward()
        return loss

    assert opt.step(closure).item() > 0
    extra = torch.nn.Parameter(torch.randn(5, 6))
    opt.add_param_group({"params": [("extra", extra)], "tau": 0.5})
    extra.grad = torch.randn(5, 6)
    opt.step()
    assert opt.readings()[-1].name == "extra"


def test_grad_scaler_skips_a_step_whole():
    for fused in (None, True):
        net, other = Net(), Net()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        opt = AdamW2(net.named_parameters(), 1e-2, fused=fused)
        train(net, opt, 5, scaler=scaler)
        train(other, AdamW2(other.named_parameters(), 1e-2), 5)
        assert gap(weights(net), weights(other)) < 1e-4
        before = weights(net)
        opt.zero_grad()
        scaler.scale(net(torch.zeros(1, 2, dtype=torch.long)).sum()).backward()
        net.up.weight.grad[0, 0] = math.inf
        scaler.step(opt)
        scaler.update()
        assert same(weights(net), before)


@pytest.mark.parametrize("fused", [None, True])
def test_grad_scaler_and_weights_in_channels_last(fused):
    def steps(scaler, **options):
        torch.manual_seed(0)
        conv = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        opt = AdamW2(conv.named_parameters(), 1e-2, **options)
        for step in range(4):
            opt.zero_grad()
            x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(step))
            scaler.scale(conv(x).square().mean()).backward()
            if step == 2:
                conv.weight.grad[0, 0, 0, 0] = math.inf
            scaler.step(opt)
            scaler.update()
        return conv, [state["step"].item() for state in opt.state.values()]

    ours, counts = steps(torch.amp.GradScaler("cpu", init_scale=2.0**14), fused=fused)
    theirs, _ = steps(torch.amp.GradScaler("cpu", init_scale=1.0), fused=None)
    assert counts == [3, 3]
    assert gap(weights(ours), weights(theirs)) < 1e-7


def test_half_precision_survives_a_decay_of_next_to_nothing():
    net, other = Net(torch.float16), Net(torch.float16)
    options = {"lr": 1e-2, "weight_decay": 1e-6, "eps": 1e-4}
    feed(net, AdamW2(net.named_parameters(), tau=math.inf, exempt=(), **options), 10)
    feed(other, torch.optim.AdamW(other.parameters(), fused=True, **options), 10)
    assert gap(weights(net), weights(other)) < 0.01


def test_bfloat16_parameters_train_as_adamw_does():
    net, other = Net(torch.bfloat16), Net(torch.bfloat16)
    feed(net, AdamW2(net.named_parameters(), 1e-2, tau=math.inf), 20)
    feed(other, torch.optim.AdamW(other.parameters(), 1e-2), 20)
    assert gap(weights(net), weights(other)) < 0.02


def test_a_nan_stays_in_its_tensor():
    net = Net()
    opt = AdamW2(net.named_parameters(), 1e-2)
    train(net, opt, 2)
    opt.zero_grad()
    net(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
    net.up.weight.grad[0, 0] = math.nan
    opt.step()
    assert net.up.weight.isnan().any()
    assert not any(p.isnan().any() for n, p in net.named_parameters() if n != "up.weight")


def test_columns_of_a_conv1d_are_bounded_like_rows_of_a_linear():
    torch.manual_seed(0)
    w = torch.randn(3 * D, D)
    linear, conv = torch.nn.Parameter(w.clone()), torch.nn.Parameter(w.T.clone())
    ours = AdamW2([("h.0.attn.c_attn.weight", linear)], 1e-2, block=D)
    theirs = AdamW2([("h.0.attn.c_attn.weight", conv)], 1e-2, block=D)
    for step in range(12):
        g = torch.randn(3 * D, D, generator=torch.Generator().manual_seed(step))
        linear.grad, conv.grad = g * 1.0, g.T.contiguous()
        linear.grad[:D] = linear.grad[:1]  # a rank-one update of W_q alone
        conv.grad = linear.grad.T.contiguous()
        ours.step()
        theirs.step()
    assert [r.name[-3:] for r in theirs.readings()] == ["[q]", "[k]", "[v]"]
    assert (linear - conv.T).abs().max() < 1e-5
    rates = [r.effective_lr for r in theirs.readings()]
    assert rates[0] < 0.9 * rates[1]


def test_heads_interleaved_per_unit_are_bounded_as_whole_projections():
    torch.manual_seed(0)
    units, d_q = 3, 8
    w = torch.randn(3, units, d_q, D)
    plain = torch.nn.Parameter(w.reshape(-1, D).clone())
    mixed = torch.nn.Parameter(w.transpose(0, 1).reshape(-1, D).clone())
    role = Role("matrix", (("q", d_q), ("k", d_q), ("v", d_q)), 0, units)
    ours = AdamW2([("c_attn.weight", plain)], 1e-2, block=D)
    theirs = AdamW2([("query_key_value.weight", mixed)], 1e-2, block=D, roles={"*query_key_value*": role})
    for _ in range(5):
        g = torch.randn(3, units, d_q, D)
        plain.grad, mixed.grad = g.reshape(-1, D), g.transpose(0, 1).reshape(-1, D)
        ours.step()
        theirs.step()
    assert (mixed.unflatten(0, (units, 3, d_q)).transpose(0, 1).reshape(-1, D) - plain).abs().max() < 1e-6


@pytest.mark.parametrize("exempt", [(), ("matrix", "vector")])
def test_odd_memory_layouts(exempt):
    """Gradients and weights in any order, expanded, or cut out of others: torch's fused kernel minds none of it."""
    torch.manual_seed(0)
    base = torch.randn(8, 3, 4, 4).double()
    ps = [
        base.clone(),
        base.clone().to(memory_format=torch.channels_last),
        torch.randn(6, 5).double().T,
        torch.randn(7).double(),
    ]
    whole = torch.randn(6, 10).double()
    beside = whole[:, 3:].clone()
    ps = [torch.nn.Parameter(p) for p in [*ps, whole[:, :3]]]
    others = [torch.nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in ps]
    ours, theirs = AdamW2(ps, 1e-2, tau=math.inf, exempt=exempt), torch.optim.AdamW(others, 1e-2)
    for step in range(6):
        for p, q in zip(ps, others, strict=True):
            g = torch.randn(p.shape) if step % 2 else torch.randn(p.shape[::-1]).permute(*range(p.ndim)[::-1])
            p.grad = torch.randn((), dtype=torch.float64).expand(p.shape) if step == 4 else g.double()
            q.grad = p.grad.contiguous()
        ours.step()
        theirs.step()
    assert gap(ps, others) < 1e-12
    assert torch.equal(whole[:, 3:], beside)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_stacked_experts_are_bounded_one_by_one(batched, decay):
    torch.manual_seed(0)
    whole = torch.randn(2, 3, 12, 8) * torch.tensor([0.1, 1.0, 10.0])[:, None, None]
    options = {"tau": 0.01, "block": 8, "weight_decay": decay, "batched": batched}
    stacks = [torch.nn.Parameter(whole[0].clone()), torch.nn.Parameter(whole[1].mT.contiguous().mT)]
    alone = [torch.nn.Parameter(w.clone()) for w in whole.flatten(0, 1)]
    ours = AdamW2([(f"h.{i}.mlp.experts.up_proj", p) for i, p in enumerate(stacks)], 0.02, **options)
    theirs = AdamW2([(f"h.{i}.up_proj.weight", p) for i, p in enumerate(alone)], 0.02, **options)
    for _ in range(5):
        g = torch.randn(2, 3, 12, 8)
        g[0, 0] = 1
        for p, one in zip([*stacks, *alone], [*g, *g.flatten(0, 1)], strict=True):
            p.grad = one.clone()
        ours.step()
        theirs.step()
    assert gap([w for p in stacks for w in p], alone) < 1e-6
    rates = {r.name: r.effective_lr for r in ours.readings()}
    assert {f"h.{i // 3}.mlp.experts.up_proj[{i % 3}]": r.effective_lr for i, r in enumerate(theirs.readings())} == (
        pytest.approx(rates, 1e-4)
    )
    assert rates["h.0.mlp.experts.up_proj[0]"] < rates["h.0.mlp.experts.up_proj[1]"] < 0.02
    observed = observe(torch.optim.SGD(stacks[:1]), names=[("experts.w", stacks[0])])
    assert [view.name for _, _, views in observed._watched for view in views] == [f"experts.w[{e}]" for e in range(3)]


def test_a_step_inside_autocast_is_the_same():
    net, other = Net(), Net()
    opt, theirs = (AdamW2(n.named_parameters(), 1e-2, certified=True) for n in (net, other))
    plain = torch.optim.SGD(other.parameters(), 0.0)
    seen = observe(plain, names=other.named_parameters())
    feed(net, opt, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feed(other, theirs, 12)
        plain.step()
        assert theirs.step(lambda: other.up(torch.ones(1, D)).dtype) is torch.bfloat16
    opt.step()
    assert same(weights(net), weights(other))
    assert seen.readings()[0].sigma1_w == pytest.approx(opt.readings()[0].sigma1_w, 1e-4)


@pytest.mark.parametrize("batched", [False, True])
def test_a_state_may_be_dropped_or_exchanged_between_steps(batched):
    net, other = Net(), Net()
    opt, theirs = (AdamW2(n.named_parameters(), 1e-2, batched=batched) for n in (net, other))
    feed(net, opt, 12)
    feed(other, theirs, 12)
    for state in opt.state.values():  # as one does who moves it off the device and back
        state.update({name: value.clone() for name, value in state.items()})
    feed(net, opt, 3, 12)
    feed(other, theirs, 3, 12)
    assert same(weights(net), weights(other))
    saved = opt.state_dict()["state"]
    assert all(torch.equal(saved[i][k], v) for i, s in theirs.state_dict()["state"].items() for k, v in s.items())
    opt.state.clear()
    again = AdamW2(other.named_parameters(), 1e-2, batched=batched)
    feed(net, opt, 3, 15)
    feed(other, again, 3, 15)
    assert gap(weights(net), weights(other)) < 1e-6


def test_names_that_no_longer_fit_are_told():
    net = Net()
    opt = AdamW2(net.named_parameters())
    opt.param_groups[0]["params"] = [torch.nn.Parameter(torch.ones(3, 3))]
    opt.param_groups[0]["params"][0].grad = torch.ones(3, 3)
    with pytest.raises(UsageError, match="9 param_names for 1"):
        opt.step()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,), (0, 3, 3), (3, 0, 2)])
@pytest.mark.parametrize("batched", [False, True])
def test_a_parameter_without_elements_does_no_harm(shape, batched):
    empty, p = torch.nn.Parameter(torch.zeros(shape)), torch.nn.Parameter(torch.ones(4, 4))
    opt = AdamW2([("experts.w", empty), ("p", p)], 1e-2, exempt=(), batched=batched)
    for _ in range(2):
        empty.grad, p.grad = torch.zeros(shape), torch.ones(4, 4)
        opt.step()
    assert opt.readings()[-1].bound


@pytest.mark.parametrize("batched", [False, True])
def test_the_papers_own_iteration(batched):
    def sigma(a, x, iterations=3):
        v = x / x.norm()
        for _ in range(iterations):
            v = a.T @ (a @ v)
            v = v / v.norm()
        return (a @ v).norm().item()

    torch.manual_seed(1)
    p = torch.nn.Parameter(torch.randn(40, 30))
    opt = AdamW2([p], 1e-2, power_iters=3, block=1, warm=False, seed=7, batched=batched)
    for step in range(3):
        p.grad = torch.randn(40, 30)
        w = p.detach().clone()
        opt.step()
        state = opt.state[p]
        t = step + 1
        u = state["exp_avg"] / (1 - 0.9**t) / ((state["exp_avg_sq"] / (1 - 0.999**t)).sqrt() + 1e-8)
        x_u = fresh(torch.tensor([key(7, 0, 0, "update")]), torch.tensor([t]), 1, 30)[0, 0]
        x_w = fresh(torch.tensor([key(7, 0, 0, "weight")]), torch.tensor([t]), 1, 30)[0, 0]
        (reading,) = opt.readings()
        assert reading.sigma1_u == pytest.approx(sigma(u, x_u), 1e-5)
        assert reading.sigma1_w == pytest.approx(sigma(w, x_w), 1e-5)
        assert reading.effective_lr == pytest.approx(min(1e-2, 0.004 * reading.sigma1_w / reading.sigma1_u))


@pytest.mark.parametrize(
    "bad",
    [
        {"tau": 0},
        {"tau": math.nan},
        {"floor": -1},
        {"eps_mode": "both"},
        {"block": 0},
        {"block": 1.5},
        {"refresh": 0},
        {"differentiable": True},
        {"fused": True, "eps_mode": "inside"},
        {"roles": {"*": "qkv"}},
        {"roles": {"*": "qkv rows"}},
    ],
)
def test_what_cannot_be_meant_is_refused(bad):
    with pytest.raises(UsageError):
        AdamW2([("a.weight", torch.nn.Parameter(torch.zeros(4, 4)))], **bad)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_tau_follows_a_schedule_as_lr_does(kind, batched):
    """A group's tau may be set each step, to a number or in a tensor that a CUDA graph reads; it is in the state."""
    net = Net()
    opt = AdamW2(net.named_parameters(), 0.1, tau=0.02, batched=batched)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 8)
    (group,) = opt.param_groups
    for step in range(8):
        group["tau"] = kind(0.02 * group["lr"] / group["initial_lr"])
        train(net, opt, 1, step)
        for r in opt.readings():
            assert r.bound
            assert r.effective_lr * r.sigma1_u == pytest.approx(float(group["tau"]) * r.sigma1_w, 1e-6)
        schedule.step()
    again = AdamW2(net.named_parameters(), 0.1)
    again.load_state_dict(opt.state_dict())
    assert again.param_groups[0]["tau"] == group["tau"]
    before = weights(net)
    group["tau"] = kind(0.0)
    train(net, opt, 1, 8)
    assert torch.equal(net.up.weight, before[5])
    for bad in (-1.0, math.nan):
        group["tau"] = bad
        with pytest.raises(UsageError, match="tau is the largest"):
            train(net, opt, 1, 9)


@pytest.mark.parametrize("batched", [False, True])
def test_at_tau_0_a_weight_without_gradient_does_not_decay(batched):
    net = Net()
    opt = AdamW2(net.named_parameters(), 0.1, weight_decay=0.1, batched=batched)
    opt.param_groups[0]["tau"] = 0.0
    before = net.up.weight.detach().clone()
    for weight in net.parameters():
        weight.grad = torch.zeros_like(weight)
    opt.step()
    assert torch.equal(net.up.weight, before)


def test_a_group_that_is_refused_is_not_added():
    opt = AdamW2(Net().named_parameters())
    with pytest.raises(UsageError, match="tau"):
        opt.add_param_group({"params": [("w", torch.nn.Parameter(torch.ones(2, 2)))], "tau": 0})
    assert len(opt.param_groups) == 1


def test_complex_parameters_are_refused():
    with pytest.raises(UsageError, match="w is complex"):
        AdamW2([("w", torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64)))])


def test_sparse_gradients_are_refused():
    table = torch.nn.Embedding(5, 4, sparse=True)
    opt = AdamW2(table.named_parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(UsageError, match="dense"):
        opt.step()


def test_the_table_says_what_is_what():
    table = AdamW2(Net().named_parameters(), exempt=("embedding", "vector", "down.*")).table().splitlines()
    assert [line.split()[0] for line in table][:3] == ["embed.weight", "qkv.weight", "qkv.bias"]
    assert table[0].split()[-2:] == ["embedding", "free"]
    assert table[1].endswith("[q], [k], [v]")
    assert table[-2].endswith("free")


@pytest.mark.parametrize("batched", [False, True])
def test_everything_lies_where_the_parameter_lies(batched):
    """Whatever the default device: a tensor made without one would land on it, and the step would fail."""
    net = Net()
    opt = AdamW2(net.named_parameters(), 1e-2, batched=batched, certified=True)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    with torch.device("meta"):
        opt.step()
        opt.step()
    assert len(opt.readings()) == 5


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("fused", [None, False, True])
def test_fused_is_what_torch_takes_it_for(foreach, fused):
    p = torch.nn.Parameter(torch.ones(3, 3))
    group = AdamW2([p], foreach=foreach, fused=fused).param_groups[0]
    assert uses_fused(group, p) is (fused if fused is not None else foreach is None)


@pytest.mark.parametrize("batched", [False, True])
def test_a_number_is_bounded_as_a_matrix_of_one_entry(batched):
    number, matrix = (torch.nn.Parameter(torch.full(s, 2.0)) for s in ((), (1, 1)))
    ours = AdamW2([("number", number), ("matrix", matrix)], 0.1, exempt=(), batched=batched)
    for _ in range(3):
        number.grad, matrix.grad = torch.tensor(3.0), torch.tensor([[3.0]])
        ours.step()
    assert 1.97 < number.item() == matrix.item() < 1.98
    assert [r.bound for r in ours.readings()] == [True, True]
    sgd = torch.optim.SGD([number], 0.1)
    watched = observe(sgd, exempt=())
    number.grad = torch.tensor(3.0)
    sgd.step()
    assert watched.readings()[0].sigma1_u == pytest.approx(3.0, 1e-4)


def test_a_device_without_float64_is_refused_before_training():
    class OnMps(torch.nn.Parameter):
        device = torch.device("mps")  # no such machine is at hand: only what the optimizer asks of it is answered

    p = OnMps(torch.ones(3, 3))
    for start in (lambda: AdamW2([("w", p)]), lambda: observe(torch.optim.SGD([p]), names=[("w", p)])):
        with pytest.raises(UsageError, match="MPS, which has no float64"):
            start()
    AdamW2([("w", p)], exempt=("w",))
