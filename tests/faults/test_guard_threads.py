"""Other threads and processes beside a guarded run; each test fails rather than hangs."""

import copy
import itertools
import threading

import pytest
import torch
import torch.nn.functional as F
from fault_run import Net, Run, X, Y, changed, everything, hooks_of, of_torch, within
from torch.utils.data import DataLoader, Dataset


class Batches(Dataset):
    """Each item has the number of its worker's own draw in it, so that workers' random numbers show."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return X[index % 6] + torch.rand(()), Y[index % 6]


def epoch(run, method):
    loader = DataLoader(Batches(), batch_size=6, num_workers=2, multiprocessing_context=method, shuffle=True)
    losses = []
    for x, y in loader:
        run.optimizer.zero_grad()
        loss = F.cross_entropy(run.model(x), y)
        loss.backward()
        run.optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader(method):
    def trained(settings):
        run = Run(settings)
        losses = [*epoch(run, method), *epoch(run, method)]
        run.detach()
        return run, losses

    def work():
        return trained(None), trained({"action": "observe", "strict": True})

    (plain, losses), (run, others) = within(120, work)
    assert all(map(torch.equal, losses, others)) and all(map(torch.equal, plain.parameters(), run.parameters()))
    assert run.measured() == [0, 1, 2, 3]


def beside(work, other):
    """What ``work()`` returns while ``other()`` runs again and again in another thread, and how often it did."""
    stop, errors, rounds = threading.Event(), [], itertools.count()

    def again_and_again():
        try:
            while not stop.is_set():
                other()
                next(rounds)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=again_and_again, daemon=True)
    thread.start()
    try:
        result = within(60, work)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive() and not errors, errors
    return result, next(rounds)


def another_model(run):
    """It has nothing to do with the guarded one, and draws no random numbers."""
    model = torch.nn.Linear(12, 5)
    return lambda: F.cross_entropy(model(X), Y).backward()


def evaluation_of_a_copy(run):
    twin = copy.deepcopy(run.model).eval()

    def work():
        twin.load_state_dict(run.model.state_dict())
        with torch.no_grad():
            twin(X)

    return work


def training_of_a_copy(run):
    twin = copy.deepcopy(run.model)
    twin.body[3] = torch.nn.Identity()  # both would draw from one generator
    optimizer = torch.optim.SGD(twin.parameters(), 0.01)

    def work():
        F.cross_entropy(twin(X), Y).backward()
        optimizer.step()

    return work


# What runs in the other thread, from the guarded run. It may not be the guarded model itself: while that is measured,
# its parameters are for some milliseconds others, in forward mode such as only the measuring thread can use.
OTHERS = {
    "another model's forward and backward": another_model,
    "an evaluation of a copy": evaluation_of_a_copy,
    "training of a copy": training_of_a_copy,
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_thread_is_not_noticed(other):
    plain = Run()
    plain.steps(25)
    run = Run({"action": "observe", "strict": True})
    flags, drawn = of_torch(), torch.get_rng_state()
    beside_it = OTHERS[other](run)
    torch.set_rng_state(drawn)
    _, rounds = beside(lambda: run.steps(25), beside_it)
    assert rounds > 1 and run.measured() == list(range(25))
    assert all(map(torch.equal, plain.parameters(), run.parameters()))
    run.detach()
    assert not changed(flags, of_torch()) and not hooks_of(run)


@pytest.mark.parametrize("grad", [False, True])
def test_an_evaluation_by_another_thread_between_steps(grad):
    run = Run({"action": "observe", "strict": True})

    def evaluate():
        with torch.set_grad_enabled(grad):
            F.cross_entropy(run.model.head(torch.ones(6, 16)), Y)

    for _ in range(10):
        run.backward()
        within(30, evaluate)
        run.optimizer.step()
    run.detach()
    assert run.measured() == list(range(10)) and len(run.memory.collapses) == 10
    assert len(hooks_of(run)) == 0


def test_two_guards_that_measure_at_the_same_time():
    alone = Run({"target": 0.02, "strict": True}, monitored=False, build=quiet)
    alone.steps(25)
    alone.detach()
    runs = [Run({"target": 0.02, "strict": True}, monitored=False, build=quiet) for _ in range(3)]
    flags, errors = of_torch(), []

    def work(run):
        try:
            run.steps(25)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(run,), daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and not errors, errors
    for run in runs:
        run.detach()
        assert run.measured() == list(range(25))
        for p, q in zip(run.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    assert not changed(flags, of_torch())


def quiet():
    """Without dropout: all threads draw from one generator."""
    model = Net()
    model.body[3] = torch.nn.Identity()
    return model


def test_a_guard_that_is_detached_by_another_thread_while_it_measures():
    run = Run({"target": 0.02, "strict": True}, monitored=False)
    entered, detached = threading.Event(), threading.Event()

    def wait(module, args):
        if not torch.is_grad_enabled() and not entered.is_set():
            entered.set()
            detached.wait(30)

    run.model.head.register_forward_pre_hook(wait)

    def detach():
        entered.wait(30)
        run.detach()
        detached.set()

    thread = threading.Thread(target=detach, daemon=True)
    thread.start()
    within(60, lambda: run.steps(3))
    thread.join(30)
    assert not thread.is_alive() and entered.is_set()
    twin = copy.deepcopy(run.model)
    assert all(p.isfinite().all() for p in twin.parameters())
    run.detach()  # once more: a thread cannot take a mode off the stack of another one, where it is idle
    assert len(hooks_of(run)) == 1  # the user's own


def test_everything_that_is_compared_is_there():
    run = Run()
    run.steps(1)
    assert changed(everything(run), everything(run)) == []
    before = everything(run)
    run.steps(1)
    assert set(changed(before, everything(run))) >= {"parameters and buffers", "gradients", "state of the optimizer"}
