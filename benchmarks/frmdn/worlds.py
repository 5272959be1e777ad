"""What world_model.py learns from: sequences of codes and actions, and how many of them."""

from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.common.store import OUT
from benchmarks.frmdn.pinball import Pinball, State

Batch = dict[str, Tensor]


class Setting(NamedTuple):
    """Sizes of data and models, and the length of training."""

    name: str
    steps: int
    hidden: int
    sequences: int  # to train on, of pinball
    length: int  # frames of a sequence
    episodes: int = 100  # of an environment
    episode_length: int = 100
    window: int = 50  # frames of a sequence of an environment
    env_steps: int = 800  # data are few: the best step comes early
    vae_steps: int = 3000
    vae_width: int = 16
    components: tuple[int, ...] = (1, 3, 5)
    ranks: tuple[int, ...] = (0, 1, 2, 3)


SETTINGS = {
    "quick": Setting(
        "quick", 300, 32, 500, 30, episodes=12, episode_length=60, window=30, env_steps=200,
        vae_steps=500, vae_width=8, components=(3,), ranks=(0, 2),
    ),
    "default": Setting("default", 4_000, 64, 3_000, 40),
    # One layer of 256 units, and the number of frames, are those of the paper's world model.
    "paper": Setting(
        "paper", 30_000, 256, 20_000, 40, episodes=1_000, episode_length=250, env_steps=30_000,
        vae_steps=30_000, vae_width=32,
    ),
}  # fmt: skip


class World(NamedTuple):
    """Codes to learn from, and what they are codes of."""

    label: str
    steps: int  # of training
    train: Batch
    validation: Batch
    test: Batch
    prefix: int  # frames that a dream starts from
    states: list[State] | None = None  # of the test sequences
    video: Any = None  # frames.Encoded

    @property
    def dim(self) -> int:
        return self.test["value"].shape[-1]

    @property
    def length(self) -> int:
        return self.test["value"].shape[-2]


def pinball(setting: Setting) -> World:
    parts, states = [], None
    for seed, num in enumerate((setting.sequences, 500, 1000)):
        table = Pinball(seed)
        actions = table.actions(num, setting.length)
        codes, states = table.play(table.start(num), actions)
        parts.append({"value": codes, "context": actions})
    return World(f"pinball_{setting.name}", setting.steps, *parts, prefix=10, states=states)


def environment(name: str, setting: Setting) -> World:
    from benchmarks.frmdn import frames  # needs gymnasium

    held_out = max(1, setting.episodes // 10)
    encoded = frames.load(
        name, OUT / "frmdn", setting.episodes, setting.episode_length, setting.vae_steps,
        setting.vae_width, 2 * held_out,
    )  # fmt: skip
    pairs = encoded.codes, encoded.actions

    def cut(first: int, last: int, stride: int) -> Batch:
        parts = [
            t[first:last].unfold(1, setting.window, stride).flatten(0, 1).mT.contiguous()
            for t in pairs
        ]
        return dict(zip(("value", "context"), parts, strict=True))

    count = setting.episodes
    train = cut(0, count - 2 * held_out, setting.window // 5)
    validation = cut(count - 2 * held_out, count - held_out, setting.window)
    test = cut(count - held_out, count, setting.window)
    label = f"{name.replace('/', '_')}_{setting.name}"
    return World(label, setting.env_steps, train, validation, test, prefix=10, video=encoded)
