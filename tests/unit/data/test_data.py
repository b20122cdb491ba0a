"""The data file: real digits, scaled, split without overlap, the same every time."""

import torch
from consistency.data import prepare


def test_digits(tmp_path, digits):
    tensors, classes = prepare.load(digits)
    assert classes == 10
    assert tensors["train_images"].shape == (1438, 1, 8, 8)
    assert tensors["test_images"].shape == (359, 1, 8, 8)
    images = torch.cat([tensors["train_images"], tensors["test_images"]])
    assert (images.min().item(), images.max().item()) == (-1, 1)
    from sklearn.datasets import load_digits

    theirs = sorted(map(tuple, (load_digits().data / 8 - 1).tolist()))
    assert sorted(map(tuple, images.flatten(1).double().tolist())) == theirs
    settings = {"kind": "digits", "test_share": 0.2, "seed": 0}
    prepare.prepare(tmp_path / "again", settings)
    assert (tmp_path / "again").read_bytes() == digits.read_bytes()
    prepare.prepare(tmp_path / "other", settings | {"seed": 1})
    assert (tmp_path / "other").read_bytes() != digits.read_bytes()
