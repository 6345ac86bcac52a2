import numpy as np
import pytest


@pytest.fixture(scope="module")
def example(load_program):
    return load_program("examples/noisy_labels_cnn.py")


@pytest.mark.slow
def test_gradients_find_the_right_labels(example, monkeypatch, capsys):
    monkeypatch.setattr(example, "STEPS", 100)
    monkeypatch.setattr(example, "RULES", ("greats", "random_k"))  # each rule costs seconds of compilation
    found = example.main()
    assert found["greats"]["clean share"] > 0.65
    assert 0.43 < found["random_k"]["clean share"] < 0.57  # four standard errors
    assert found["greats"]["test accuracy"] > found["random_k"]["test accuracy"] + 0.1
    assert f"greats      {found['greats']['clean share']:25.0%}" in capsys.readouterr().out


def test_images_show_their_class(example):
    """The mean images of the classes differ by more than the noise that is left in them."""
    images, labels = example.draw(np.random.default_rng(0), 800)
    assert images.shape == (800, example.SIDE, example.SIDE, 1)
    means = np.stack([images[labels == c].mean(0) for c in range(example.CLASSES)])
    apart = np.abs(means[:, None] - means).max((2, 3, 4))
    assert (apart + np.eye(example.CLASSES) > 10 * example.NOISE / np.sqrt(200)).all()
