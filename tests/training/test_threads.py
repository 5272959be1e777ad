"""Training in several threads at once depends on its seed alone."""

import copy
import threading

import torch

from pyromix import DRMM, GaussianMixture, RelaxedGaussianMixture, fit, fit_em, fit_vb


def trained(model, data, seed):
    model = copy.deepcopy(model)
    fit(model, data, steps=30, batch_size=32, lr=0.02, seed=seed, progress_bar=False)
    return model.state_dict()


def by_expectation(model, data, seed):
    model = copy.deepcopy(model)
    fit_em(model, data, steps=5, restarts=2, seed=seed, progress_bar=False)
    return model.state_dict()


def by_variation(model, data, seed):
    result = fit_vb(model, data, steps=5, prune=False, seed=seed, progress_bar=False)
    return result.model.state_dict()


def test_threads_train_what_they_would_train_alone():
    data = torch.randn(200, 2)
    jobs = [
        (trained, GaussianMixture(2, 3), 1),
        (trained, RelaxedGaussianMixture(2, 3, num_inner=16), 2),
        (trained, DRMM(2, 2, 4, curriculum=[("joint", 1.0)]), 3),  # draws codes in every step
        (by_expectation, GaussianMixture(2, 3), 4),
        (by_variation, GaussianMixture(2, 3), 5),
    ]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = [train(model, data, seed) for train, model, seed in jobs]
    assert torch.equal(torch.get_rng_state(), before)
    together = {}

    def run(place):
        train, model, seed = jobs[place]
        together[place] = train(model, data, seed)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    drawn = []
    while any(thread.is_alive() for thread in threads):
        drawn.append(torch.rand(10))  # of the main thread, meanwhile
    for thread in threads:
        thread.join()
    for place, expected in enumerate(alone):
        for name, value in expected.items():
            assert torch.equal(together[place][name], value), (place, name)
    torch.set_rng_state(before)
    for part in drawn:
        assert torch.equal(part, torch.rand(10))
