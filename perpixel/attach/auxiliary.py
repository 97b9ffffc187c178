"""Which further maps of a model's output count in the loss, and with what weight."""

from collections.abc import Collection, Mapping

from perpixel.checks import check_number, complain

Key = str | int
Aux = float | Mapping[Key, float] | None

DEFAULT_WEIGHTS: dict[Key, float] = {"aux": 0.5}  # torchvision's references/segmentation/train.py


def check_aux(aux: Aux) -> float | dict[Key, float] | None:
    """`aux` with every weight a float, else TypeError or ValueError."""
    if aux is None:
        return None
    if not isinstance(aux, Mapping):
        return check_number("aux", aux, low=0.0)
    for key in aux:
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            expected = "names (str) or places (int) of maps in the model's output as keys"
            raise TypeError(complain("aux", expected, key, 'Pass {"aux": 0.4} or {1: 0.4, 2: 0.2}.'))
    return {key: check_number(f"aux[{key!r}]", weight, low=0.0) for key, weight in aux.items()}


def aux_weights(aux: Aux, found: Collection[Key], *, training: bool) -> dict[Key, float]:
    """The weight of each of the maps found that counts.

    ValueError for a name that is not among them; in evaluation, where many models return the main map alone, only if
    others are.
    """
    if aux is None:
        weights = {key: weight for key, weight in DEFAULT_WEIGHTS.items() if key in found}
    elif isinstance(aux, Mapping):
        unknown = [key for key in aux if key not in found]
        if unknown and (training or found):
            expected = f"names of further maps of the model's output ({', '.join(map(repr, found)) or 'none'})"
            remedy = "Pass the model's whole output; of it a map counts if it has the main one's batch and classes."
            raise ValueError(complain("aux", expected, ", ".join(map(repr, unknown)), remedy))
        weights = {key: weight for key, weight in aux.items() if key in found}
    else:
        weights = dict.fromkeys(found, aux)
    return {key: weight for key, weight in weights.items() if weight > 0}
