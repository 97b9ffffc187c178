"""The table of networks in docs/models.md: a small part is made anew and must say the same."""

import importlib.util

import pytest

from benchmarks import zoo

PAGE = zoo.PAGE.read_text(encoding="utf-8")
PARTS = {
    "perpixel": "perpixel fcn8s",
    "transformers": "transformers Segformer",
    "segmentation_models_pytorch": "smp FPN, mit_b0",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", PARTS)
def test_the_page_says_what_happens(library: str) -> None:
    if not importlib.util.find_spec(library):
        pytest.skip(f"needs {library}")
    written, networks = zoo.rows_of(PAGE), zoo.networks(PARTS[library])
    assert networks
    for name, network in networks.items():
        assert zoo.row(name, network) == written[name]


def test_a_row_says_in_a_few_words_what_is_refused() -> None:
    import torch
    from torch import nn

    class Sorted(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.sort(1)[0])

    network = zoo.Network(lambda: Sorted(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)))
    name, attached, traced, *others = zoo.row("perpixel sorted", network)
    assert name == "perpixel sorted"
    assert traced == "sort: there is no rule for it"
    assert attached == "✓"
    assert others == ["✓", "✓"]


def test_rows_are_replaced_and_the_text_around_them_is_kept() -> None:
    rows = zoo.rows_of(PAGE)
    assert zoo.with_rows(PAGE, rows) == PAGE
    changed = {**rows, "perpixel small_fcn": ["perpixel small_fcn", "no", "✓", "✓", "✓"], "MONAI X": ["MONAI X"] * 5}
    changed.pop("smp FPN, mit_b0")
    page = zoo.with_rows(PAGE, changed)
    assert zoo.rows_of(page) == changed
    assert page.split(zoo.START)[0] == PAGE.split(zoo.START)[0]
    assert page.split(zoo.END)[1] == PAGE.split(zoo.END)[1]
    assert page.index("MONAI X") < page.index("| perpixel small_fcn |")
