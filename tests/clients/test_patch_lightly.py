"""fastpair.patch("lightly"): its losses patched against not patched, with and without a memory bank."""

import copy
import io
import pickle

import pytest
import torch
from patched import assert_same, counted, value_and_gradients
from torch import nn

import fastpair

pytest.importorskip("lightly")
theirs = pytest.importorskip("lightly.loss")

NTXENT, DCL = "NTXentLoss.forward", "DCLLoss.forward"
# DCLWLoss copies a tensor by torch.tensor.
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct")


def views(n=20, d=7, dtype=torch.float64):
    return [torch.randn(n, d, dtype=dtype).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [0.5, 0.07])
@pytest.mark.parametrize("n", [1, 2, 20])
def test_ntxent_without_a_bank(dtype, temperature, n):
    x, y = views(n, dtype=dtype)
    assert_same("lightly", NTXENT, lambda: theirs.NTXentLoss(temperature)(x, y), [x, y])


@pytest.mark.parametrize("temperature", [0.5, 0.07])
@pytest.mark.parametrize("n", [1, 20])
def test_ntxent_with_a_bank(temperature, n):
    x, y = views(n, dtype=torch.float32)
    first = theirs.NTXentLoss(temperature, (64, 7))

    def run():
        return copy.deepcopy(first)(x, y)

    assert_same("lightly", NTXENT, run, [x, y])


def test_the_bank_is_read_before_it_is_updated_and_updated_only_for_training():
    first = theirs.NTXentLoss(0.2, (50, 7))
    batches = [views(20, dtype=torch.float32) for _ in range(6)]

    def trail(loss):
        found = []
        for i, (x, y) in enumerate(batches):
            value, *gradients = value_and_gradients(lambda x=x, y=y: loss(x, y), [x, y])
            constant = loss(x.detach(), y)  # an evaluation, which leaves the bank alone
            found += [
                value,
                *gradients,
                constant.detach(),
                loss.memory_bank.bank.clone(),
                loss.memory_bank.bank_ptr + i,
            ]
        return found

    want = trail(copy.deepcopy(first))
    loss = copy.deepcopy(first)
    with counted("lightly", NTXENT, None):
        got = trail(loss)
    for ours, its in zip(got, want):
        torch.testing.assert_close(ours, its, rtol=2e-5, atol=1e-7)
    assert torch.equal(got[-1], want[-1])
    assert len({int(pointer) for pointer in got[5::6]}) > 1


def test_directclr_calls_ntxent():
    x, y = views(d=12)
    assert_same("lightly", NTXENT, lambda: theirs.DirectCLRLoss(loss_dim=5)(x, y), [x, y])
    report = fastpair.patch("lightly", theirs.DirectCLRLoss())
    assert report.replaced == {NTXENT: "supcon_loss, where DirectCLRLoss.forward calls it"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_dcl(dtype, temperature):
    x, y = views(dtype=dtype)
    assert_same("lightly", DCL, lambda: theirs.DCLLoss(temperature)(x, y), [x, y])
    assert_same("lightly", DCL, lambda: theirs.DCLWLoss(temperature, sigma=0.7)(x, y), [x, y])


def test_dcl_with_weights_that_have_a_gradient():
    x, y = views()
    loss = theirs.DCLLoss(weight_fn=lambda a, b: (a - 2 * b).square().sum(1))
    assert_same("lightly", DCL, lambda: loss(x, y), [x, y])


def smoothed(loss):
    loss.cross_entropy = nn.CrossEntropyLoss(label_smoothing=0.1)
    return loss


@pytest.mark.parametrize(
    ("make", "title", "reason"),
    [
        (lambda: theirs.NTXentLoss(-0.5), NTXENT, "temperature"),
        (lambda: smoothed(theirs.NTXentLoss()), NTXENT, "cross_entropy"),
        (lambda: theirs.DCLLoss(-0.5), DCL, "temperature"),
    ],
)
def test_settings_that_stay(make, title, reason):
    x, y = views()
    assert_same("lightly", title, lambda: make()(x, y), [x, y], reason)
    report = fastpair.patch("lightly", make())
    assert reason in report.kept[title]
    assert not report.replaced


def test_calls_that_stay():
    x, y = views(1)
    with counted("lightly", DCL, "one sample"):
        assert theirs.DCLLoss()(x, y) == -torch.inf
    x, y = views()
    with counted("lightly", NTXENT, "dtype"), pytest.raises(RuntimeError):
        theirs.NTXentLoss(0.5, (64, 7))(x, y)


def test_losses_of_other_definitions():
    report = fastpair.patch("lightly", theirs.MACLLoss())
    assert "temperature" in report.kept["MACLLoss"]
    report = fastpair.patch("lightly", theirs.BarlowTwinsLoss())
    assert report.kept == {"BarlowTwinsLoss": "fastpair has no loss of this definition"}


def test_pickles_and_states():
    loss = theirs.NTXentLoss(0.2, (50, 7))
    x, y = views(dtype=torch.float32)
    with fastpair.patch("lightly", loss):
        loss(x, y)
        text = pickle.dumps(loss)
        assert b"fastpair" not in text
        saved = io.BytesIO()
        torch.save(loss.state_dict(), saved)
    theirs.NTXentLoss(0.2, (50, 7)).load_state_dict(torch.load(io.BytesIO(saved.getvalue())))
    again = pickle.loads(text)
    assert torch.equal(again.memory_bank.bank, loss.memory_bank.bank)


def trained(loss, steps=8):
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 7))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(4)
    values = []
    for _ in range(steps):
        x = torch.randn(16, 12, generator=generator)
        noisy = [x + 0.3 * torch.randn(16, 12, generator=generator) for _ in range(2)]
        value = loss(*map(network, noisy))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values, network.state_dict()


@pytest.mark.parametrize("bank", [0, (48, 7)])
def test_training(bank):
    first = theirs.NTXentLoss(0.2, bank)
    want, state = trained(copy.deepcopy(first))
    with counted("lightly", NTXENT, None):
        got, ours = trained(copy.deepcopy(first))
    assert got == pytest.approx(want, rel=1e-4)
    for name, value in state.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
