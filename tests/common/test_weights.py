"""Claims of common/weights.py."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sottovoce.common.weights import Layout, ModelWeights, digest, from_state_dict, to_state_dict
from tests.fakes.federations import weights_of

SHAPES = st.dictionaries(
    st.text(min_size=1, max_size=8), hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
)


@given(SHAPES, st.integers(0, 100))
def test_flattening_there_and_back_changes_no_bit(shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = {name: np.asarray(random.normal(size=shape), np.float32) for name, shape in shapes.items()}
    layout = Layout.of(weights)
    assert digest(layout.unflatten(layout.flatten(weights))) == digest(weights)
    assert layout.names == tuple(weights)


def test_digest_changes_with_any_bit_name_shape_or_order() -> None:
    weights = weights_of()
    others = []
    for name, array in weights.items():
        flipped = np.array(array)
        flipped.reshape(-1).view(np.uint32)[0] ^= 1
        others.append({**weights, name: flipped})
    others.append({("x" if name == "scale" else name): array for name, array in weights.items()})
    others.append({**weights, "layer.weight": weights["layer.weight"].reshape(2, 3)})
    others.append(dict(reversed(list(weights.items()))))
    others.append({**weights, "layer.bias": weights["layer.bias"].view(np.int32)})
    assert len({digest(other) for other in [weights, *others]}) == 1 + len(others)


def test_digest_is_the_same_in_every_release() -> None:
    weights = {"a": np.arange(3, dtype=np.float32), "b": np.asarray(0.5, np.float32)}
    assert digest(weights) == "18b28b1f58f0855ac73dfc8d7adfb8d30b795ca3e028cedc3fd0c300b40903ad"


def test_digest_ignores_memory_order() -> None:
    columns_first = {"a": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))}
    assert digest(columns_first) == digest({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})


def test_copies_of_a_model_do_not_follow_it() -> None:
    model = torch.nn.Linear(2, 3)
    weights = from_state_dict(model.state_dict())
    before = digest(weights)
    with torch.no_grad():
        model.weight.add_(1.0)
    assert digest(weights) == before
    model.load_state_dict(to_state_dict(weights))
    assert digest(from_state_dict(model.state_dict())) == before


def test_weights_written_into_a_model_are_its_weights_and_copies_do_not_follow_it() -> None:
    model, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    held, wanted = ModelWeights(model), from_state_dict(other.state_dict())
    held.write(wanted)
    assert digest(from_state_dict(model.state_dict())) == digest(held.copy()) == digest(wanted)
    copied = held.copy()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert digest(copied) == digest(wanted) != digest(held.copy())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda w: {"weight": w["weight"]}, KeyError),
        (lambda w: w | {"bias": w["bias"][:1]}, ValueError),
        (lambda w: w | {"bias": w["bias"].astype(np.float64)}, TypeError),
    ],
    ids=["missing", "one that would broadcast", "dtype"],
)
def test_other_weights_than_the_models_are_not_written(
    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], error: type[Exception]
) -> None:
    model = torch.nn.Linear(2, 3)
    with pytest.raises(error):
        ModelWeights(model).write(change(from_state_dict(model.state_dict())))


def test_a_model_with_a_counter_is_refused() -> None:
    with pytest.raises(TypeError, match="num_batches_tracked"):
        from_state_dict(torch.nn.BatchNorm1d(3).state_dict())


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected a vector of 10 numbers"):
        Layout.of(weights_of()).unflatten(np.zeros(9, np.float32))
