"""Lists of MLPs run in place of the block's own sum, and blocks whose sum cannot be told."""

import pytest
import remote
import tiny
import torch

from moeprune.errors import BadInput
from moeprune.interface import experts_of, in_place, routers_of
from moeprune.observer import Observer

HIDDEN = torch.randn(2, 7, tiny.HIDDEN, generator=torch.Generator().manual_seed(5))
BOTH = [False, True]


class Scaling(remote.Block):
    """Its gate answers with experts and gates, which the block then multiplies by a number of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.gate = Answering(self.gate.weight)

    def routed(self, rows):
        """See Block."""
        expert, gate = self.gate(rows)
        return expert, gate * self.secret, gate


class Answering(torch.nn.Module):
    """A gate that keeps its logits to itself."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, rows):
        """(experts [T, K], gates [T, K])."""
        return (rows @ self.weight.T).softmax(-1).topk(tiny.TOP_K)[::-1]


class Bypassing(remote.Block):
    """Never calls its gate."""

    def routed(self, rows):
        """See Block."""
        gate, expert = (rows @ self.gate.weight.T).softmax(-1).topk(tiny.TOP_K)
        return expert, gate, gate


class Dense(remote.Block):
    """Runs every expert on every token, and chooses afterwards."""

    def forward(self, hidden_states):
        """See Block."""
        rows = hidden_states.flatten(0, 1)
        expert, gate, logits = self.routed(rows)
        outputs = torch.stack([one(rows) for one in self.experts], 1)
        chosen = outputs.gather(1, expert[..., None].expand(-1, -1, tiny.HIDDEN))
        return (chosen * gate[..., None]).sum(1).view_as(hidden_states), logits


def brute_force(block, hidden):
    """By token: {expert: (gate, output)}, from the definition."""
    found = []
    for h in hidden.flatten(0, 1).double():
        z = block.gate.weight.double() @ h
        p = z.exp() / z.exp().sum() if block.score == "softmax" else 1 / (1 + (-z).exp())
        chosen = sorted(range(len(z)), key=lambda e: -float(z[e]))[: tiny.TOP_K]
        total = sum(float(p[e]) for e in chosen) if block.renormalised else 1.0
        outputs = {}
        for e in chosen:
            one = block.experts[e].double()
            outputs[e] = (float(p[e]) / total, one(h))
            one.float()
        found.append(outputs)
    return found


@torch.no_grad()
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalised", BOTH)
def test_gate_of_logits_alone_is_read_as_the_block_reads_it(score, renormalised):
    block = remote.Block(score, renormalised)
    model = remote.Stack(block)
    expected = brute_force(block, HIDDEN)
    with Observer(model, ("core",), ("deployed",)) as observer:
        model(HIDDEN)
        sums = observer.take()
    for e in range(tiny.EXPERTS):
        visits = [outputs[e] for outputs in expected if e in outputs]
        wanted = sum(gate * float(output.norm()) for gate, output in visits)
        assert float(sums["moments"][0, e, 0, 0]) == len(visits)
        assert float(sums["moments"][0, e, 1, 1]) == pytest.approx(wanted, rel=1e-5)
        logits = HIDDEN.flatten(0, 1).double() @ block.gate.weight.double().T
        p = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
        assert float(sums["probability"][0, e]) == pytest.approx(float(p[:, e].sum()), rel=1e-5)


@torch.no_grad()
def test_in_place_keeps_what_else_the_block_returns_and_the_innermost_function_counts():
    block = remote.Block()
    (experts,) = experts_of(remote.Stack(block)).values()
    output, logits = block(HIDDEN)
    with experts.in_place(lambda hidden, expert, gate: 2 * experts.total(hidden, expert, gate)):
        doubled, same = block(HIDDEN)
        with experts.in_place(lambda hidden, expert, gate: torch.zeros_like(hidden)):
            assert not block(HIDDEN)[0].any()
        assert torch.equal(block(hidden_states=HIDDEN)[0], doubled)
    torch.testing.assert_close(doubled, 2 * output, rtol=1e-5, atol=1e-6)
    assert torch.equal(same, logits) and torch.equal(block(HIDDEN)[0], output)
    assert "forward" not in vars(block) and not any("forward" in vars(one) for one in experts.module)
    assert not block.gate._forward_hooks


@torch.no_grad()
def test_all_is_as_before_when_a_pass_is_broken_off():
    block = remote.Block()
    (experts,) = experts_of(remote.Stack(block)).values()
    output = block(HIDDEN)[0]

    def stop(hidden, expert, gate):
        raise KeyError

    with pytest.raises(KeyError), in_place({experts: stop}):
        block(HIDDEN)
    assert torch.equal(block(HIDDEN)[0], output)


def test_gradients_reach_experts_and_gate_though_the_block_lets_none_through(tmp_path):
    model = remote.load(remote.write_deepseek(tmp_path / "model"))
    ids = torch.stack(tiny.token_ids(9))
    layers = experts_of(model)
    model(input_ids=ids).logits.sum().backward()
    weights = [layers[2].module[0].down_proj.weight, layers[2].gate.weight]
    assert [weight.grad for weight in weights] == [None, None]
    with in_place({experts: experts.total for experts in layers.values()}):
        model(input_ids=ids).logits.sum().backward()
    chosen = [one.down_proj.weight.grad for one in layers[2].module if one.down_proj.weight.grad is not None]
    assert chosen and all(grad.any() for grad in chosen) and layers[2].gate.weight.grad.any()


@torch.no_grad()
def test_outputs_are_of_each_row_and_zero_beyond_the_last_expert():
    block = remote.Block()
    (experts,) = experts_of(remote.Stack(block)).values()
    rows, numbers = HIDDEN.flatten(0, 1)[:4], torch.tensor([3, 8, 0, 3])
    output, inner = experts.outputs_and_inner(rows, numbers, torch.ones(4))
    assert torch.equal(output, experts.outputs(rows, numbers, torch.ones(4)))
    assert not output[1].any() and not inner[1].any()
    for i in (0, 2, 3):
        one = block.experts[int(numbers[i])]
        torch.testing.assert_close(output[i], one(rows[i]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.w2(inner[i]), output[i], rtol=1e-5, atol=1e-6)
    assert not experts.outputs(rows[:1], numbers[1:2], torch.ones(1)).any()


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Scaling(secret=1.01), "does not add up its experts as its Answering says"),
        (remote.Block(secret=1.01), "does not add up its experts as its Linear says"),
        (Bypassing(), "calls its gate 0 times"),
        (Dense(), "does not add up its experts as its Linear says"),
    ],
    ids=["scaled", "scaled logits", "gate bypassed", "all experts run"],
)
@torch.no_grad()
def test_block_whose_sum_cannot_be_told_is_refused_on_the_first_batch(block, reason):
    model = remote.Stack(block)
    with (
        pytest.raises(BadInput, match=reason) as refusal,
        Observer(model, ("core",), ("deployed",)),
    ):
        model(HIDDEN)
    assert "\n" not in str(refusal.value) and "choose a weight-only criterion" in str(refusal.value)


@torch.no_grad()
def test_block_is_refused_in_bfloat16_if_it_is_off_by_more_than_rounding():
    for secret, accepted in ((1.0, True), (1.25, False)):
        block = Scaling(secret=secret).bfloat16()
        (experts,) = experts_of(remote.Stack(block)).values()
        with in_place({experts: experts.total}):
            if accepted:
                block(HIDDEN.bfloat16())
            else:
                with pytest.raises(BadInput):
                    block(HIDDEN.bfloat16())


def test_scaling_block_without_its_secret_is_accepted():
    model = remote.Stack(Scaling(renormalised=False))
    layers = experts_of(model)
    with torch.no_grad(), in_place({experts: experts.total for experts in layers.values()}):
        assert model(HIDDEN).isfinite().all()
    ((router, _),) = routers_of(model, layers).values()
    assert router is model.layers[0]["mlp"].gate


def test_lists_that_are_no_experts_are_not_taken_for_them():
    block = remote.Block()
    for spoilt in (
        torch.nn.ModuleDict({"gate": block.gate, "parts": torch.nn.ModuleList([remote.Mlp(16), remote.Mlp(8)] * 4)}),
        torch.nn.ModuleDict({"gate": block.gate, "heads": torch.nn.ModuleList([torch.nn.Linear(32, 32)] * 8)}),
        torch.nn.ModuleDict({"gate": torch.nn.Linear(tiny.HIDDEN, 3), "experts": block.experts}),
    ):
        with pytest.raises(BadInput, match="are not made in any way that can be observed"):
            experts_of(remote.Stack(spoilt))
