"""The training script: its split, its gradients, its export."""

from __future__ import annotations

import numpy as np

from examples.digits import train

SPLIT = train.load_split()
TINY = train.Recipe(channels=(3,), epochs=3)


def test_the_committed_held_out_images_are_those_of_the_split() -> None:
    with np.load(train.HELD_OUT) as committed:
        np.testing.assert_array_equal(committed["images"], SPLIT.held_out_images)
        np.testing.assert_array_equal(committed["labels"], SPLIT.held_out_labels)


def test_the_split_is_stratified_and_disjoint() -> None:
    held_out, trained = (np.bincount(labels) for labels in (SPLIT.held_out_labels, SPLIT.labels))
    np.testing.assert_array_equal(held_out, (held_out + trained) // 5)
    assert not {image.tobytes() for image in SPLIT.images} & {i.tobytes() for i in SPLIT.held_out_images}


def test_gradients_are_those_of_finite_differences() -> None:
    random = np.random.default_rng(0)
    parameters = [
        (weight.astype(np.float64), random.normal(0, 0.1, bias.shape)) for weight, bias in train.initial((2, 3), random)
    ]
    images, labels = SPLIT.images[:4].astype(np.float64), SPLIT.labels[:4]

    def loss() -> float:
        return float(-np.log(train.predict(parameters, images)[np.arange(4), labels]).mean())

    variables = [variable for pair in parameters for variable in pair]
    for variable, gradient in zip(variables, train.gradients(parameters, images, labels), strict=True):
        place = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
        here, around = variable[place], []
        for variable[place] in (here - 1e-6, here + 1e-6):
            around.append(loss())
        variable[place] = here
        np.testing.assert_allclose(gradient[place], (around[1] - around[0]) / 2e-6, rtol=1e-4)


def test_training_learns_and_repeats_itself() -> None:
    seen: list[float] = []
    parameters = train.train(
        SPLIT.images,
        SPLIT.labels,
        5,
        TINY,
        lambda now: seen.append(train.accuracy(train.predict(now, SPLIT.held_out_images), SPLIT.held_out_labels)),
    )
    assert len(seen) == TINY.epochs
    assert seen[-1] > 0.5  # chance is 0.1
    again = train.train(SPLIT.images, SPLIT.labels, 5, TINY)
    for (weight, bias), (same_weight, same_bias) in zip(parameters, again, strict=True):
        np.testing.assert_array_equal(weight, same_weight)
        np.testing.assert_array_equal(bias, same_bias)


def test_the_export_computes_what_the_network_computes() -> None:
    parameters = train.initial((4, 8), np.random.default_rng(1))
    images = SPLIT.held_out_images[:5]
    served = train.run(train.export(parameters), images)
    np.testing.assert_allclose(served, train.predict(parameters, images), atol=1e-6)


def test_shifting_moves_each_image_by_one_pixel_at_most() -> None:
    image = np.zeros((200, 1, 8, 8), np.float32)
    image[:, 0, 4, 4] = 1
    moved = train.shifted(image, np.random.default_rng(2))
    places = {tuple(place) for place in np.argwhere(moved)[:, 2:].tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}
