"""The architectures of the paper's Table I, by name."""

__all__ = ["PRESETS"]

from .layers import GMM, Folding, Layer, Pooling

# For images of 28 x 28. The last fold of 3L-a is printed as 6 x 6, which is more than the 5 x 5
# that its layers leave (28, 26, 13, 10, 5): all that is left is what is meant.
PRESETS: dict[str, tuple[Layer, ...]] = {
    "1L": (Folding(28), GMM(25)),
    "2L-a": (Folding(20, 8), GMM(25), Folding(2), GMM(36)),
    "2L-b": (Folding(7), GMM(25), Folding(4), GMM(36)),
    "2L-c": (Folding(8, 2), GMM(25), Folding(11), GMM(36)),
    "2L-d": (Folding(28), GMM(25), Folding(1), GMM(36)),
    "2L-e": (Folding(4, 2), GMM(25), Folding(13), GMM(36)),
    "3L-a": (
        *(Folding(3, 1), GMM(25), Pooling(2)),
        *(Folding(4, 1), GMM(25), Pooling(2)),
        *(Folding(5), GMM(49)),
    ),
    "3L-b": (Folding(28), GMM(25), Folding(1), GMM(25), Folding(1), GMM(25)),
}
