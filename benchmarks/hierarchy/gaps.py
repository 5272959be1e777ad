"""How far the bounds of hierarchies are below their densities.

Hierarchies that are small enough for sums over all codes of all cells are trained on trajectories
of 12 steps (windows of 4, 2 apart, of triangular maps: 64 codes a cell), on waves of 48 steps in
two channels (windows of 8, 3 apart, of triangular maps, under pairs: 256 codes a cell), and on
digits of 8 x 8 pixels (windows of 2 x 2, twice: 64 codes a cell). Printed: the mean over held-out
arrays of the density less the bound, in nats, by the number of codes that are kept of a cell and
the number of sweeps from the top down.

    python -m benchmarks.hierarchy.gaps [--quick]
"""

import torch
from torch import Generator, Tensor

from benchmarks.common import cli
from pyromix import HierarchicalDRMM, Level, Top, fit
from pyromix.datasets import digits, jump_trajectories
from pyromix.hierarchy.law import Search

BEAMS, SWEEPS, MOST = (1, 2, 4, 8, 16, 32, 64), (0, 1, 2), 256
COMPONENTS, HELD_OUT = 8, 100


def trajectories() -> tuple[HierarchicalDRMM, Tensor, Tensor, dict[str, float]]:
    x = jump_trajectories(5000, 12, generator=Generator().manual_seed(0))
    levels = [Level(4, 2, 2, COMPONENTS, "triangular"), Top(2, COMPONENTS)]
    model = HierarchicalDRMM((2, 12), levels, max_codes=COMPONENTS**2)
    return model, x[HELD_OUT:], x[:HELD_OUT], {"gradient_clip": 50.0}


def waves() -> tuple[HierarchicalDRMM, Tensor, Tensor, dict[str, float]]:
    generator = Generator().manual_seed(0)
    phase, speed, size = torch.rand(3, 2000, 1, generator=generator)
    wave = (0.5 + size) * torch.sin(6.28 * phase + (0.15 + 0.1 * speed) * torch.arange(48))
    noise = 0.03 * torch.randn(2000, 2, 48, generator=generator)
    x = torch.stack([wave, wave.roll(1, -1) / 2], 1) + noise
    levels = [Level(8, 3, 2, 16, "triangular"), Level(2, None, 2, 16), Top(2, 16)]
    return HierarchicalDRMM((2, 48), levels), x[HELD_OUT:], x[:HELD_OUT], {"gradient_clip": 50.0}


def images() -> tuple[HierarchicalDRMM, Tensor, Tensor, dict[str, float]]:
    x, _ = digits()
    x = x[torch.randperm(len(x), generator=Generator().manual_seed(0))]
    levels = [Level(2, None, 2, COMPONENTS), Level(2, None, 2, COMPONENTS), Top(2, COMPONENTS)]
    rounding = (1 / 16, 0.0, 1.0)
    model = HierarchicalDRMM((1, 8, 8), levels, rounding=rounding, max_codes=COMPONENTS**2)
    return model, x[HELD_OUT:], x[:HELD_OUT], {}


def main() -> None:
    parser = cli.make_parser(__doc__, quick="fewer steps of training")
    arguments = cli.parse(parser)
    steps = 100 if arguments.size == "quick" else 1000
    makers = {"trajectories": trajectories, "waves": waves, "digits": images}
    for name, make in makers.items():
        torch.manual_seed(0)
        model, train, test, options = make()
        fit(model, train, steps=steps, batch_size=64, seed=0, progress_bar=False, **options)
        mass = model.rounding is not None
        with torch.no_grad():
            every = Search(max_codes=MOST, max_kept=MOST)
            exact = torch.cat(
                [model.law.log_prob(model.flatten(x), every, mass=mass) for x in test.split(10)]
            )
            print(f"{name}: {float(exact.mean()):.2f} nats")
            print(f"{'codes':>6}" + "".join(f" {f'{sweeps} sweeps':>10}" for sweeps in SWEEPS))
            for beam in BEAMS:
                line = f"{beam:>6}"
                for sweeps in SWEEPS:
                    flat, how = model.flatten(test), Search(beam, sweeps, max_kept=0)
                    bound = model.law.log_prob(flat, how, mass=mass)
                    line += f" {float((exact - bound).mean()):>10.4f}"
                print(line, flush=True)


if __name__ == "__main__":
    main()
