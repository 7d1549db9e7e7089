"""How data sets of Hugging Face are called, and the classes of well-known data sets."""

HUGGING_FACE = "hf:"  # how the names of its data sets begin

_DIGITS = tuple("0123456789")
# In the order of their labels.
KNOWN: dict[str, tuple[str, ...]] = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "svhn_cropped": _DIGITS,
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}
