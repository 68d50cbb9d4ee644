"""The check of a batch: exactly the shapes and datatypes of the specs pass, whatever they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster.errors import InvalidRequest
from cluster.tensors import DATATYPE_OF_NUMPY, NUMPY_OF_DATATYPE, check_inputs
from cluster.variants import TensorSpec

DATATYPES = sorted(NUMPY_OF_DATATYPE)
IMAGE = TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 2, 2))


@st.composite
def specs(draw: st.DrawFn) -> TensorSpec:
    shape = draw(st.lists(st.sampled_from([-1, 1, 2, 3]), min_size=1, max_size=4))
    return TensorSpec(name=draw(st.text(min_size=1)), datatype=draw(st.sampled_from(DATATYPES)), shape=tuple(shape))


@st.composite
def fitting(draw: st.DrawFn, spec: TensorSpec) -> NDArray[Any]:
    shape = [draw(st.integers(1, 4)) if size == -1 else size for size in spec.shape]
    return np.zeros(shape, NUMPY_OF_DATATYPE[spec.datatype])


def test_every_datatype_has_one_dtype_and_back() -> None:
    assert set(DATATYPES) == set(TensorSpec.model_fields["datatype"].annotation.__args__)  # type: ignore[union-attr]
    assert {name: DATATYPE_OF_NUMPY[dtype] for name, dtype in NUMPY_OF_DATATYPE.items()} == {n: n for n in DATATYPES}


@given(data=st.data())
def test_what_fits_passes(data: st.DataObject) -> None:
    wanted = data.draw(st.lists(specs(), max_size=3, unique_by=lambda spec: spec.name))
    check_inputs(wanted, {spec.name: data.draw(fitting(spec)) for spec in wanted})


@given(data=st.data())
def test_another_datatype_is_refused_by_both_names(data: st.DataObject) -> None:
    spec = data.draw(specs())
    other = data.draw(st.sampled_from(DATATYPES).filter(lambda name: name != spec.datatype))
    array = np.zeros([max(size, 1) for size in spec.shape], NUMPY_OF_DATATYPE[other])
    with pytest.raises(InvalidRequest) as caught:
        check_inputs([spec], {spec.name: array})
    assert f"has datatype {other};" in str(caught.value)
    assert str(caught.value).endswith(f"takes {spec.datatype}")


@given(data=st.data())
def test_another_shape_is_refused(data: st.DataObject) -> None:
    spec = data.draw(specs())
    shape = data.draw(st.lists(st.integers(0, 4), max_size=5))
    fits = len(shape) == len(spec.shape) and all(
        size >= 1 if want == -1 else size == want for size, want in zip(shape, spec.shape, strict=True)
    )
    tensors = {spec.name: np.zeros(shape, NUMPY_OF_DATATYPE[spec.datatype])}
    if fits:
        check_inputs([spec], tensors)
        return
    with pytest.raises(InvalidRequest) as caught:
        check_inputs([spec], tensors)
    assert str(shape) in str(caught.value)
    assert str(list(spec.shape)) in str(caught.value)


@given(names=st.sets(st.sampled_from("abcd")), given_=st.sets(st.sampled_from("abcd")))
def test_the_names_must_be_the_same(names: set[str], given_: set[str]) -> None:
    wanted = [TensorSpec(name=name, datatype="FP32", shape=(-1,)) for name in names]
    tensors = {name: np.zeros(1, np.float32) for name in given_}
    if names == given_:
        check_inputs(wanted, tensors)
        return
    with pytest.raises(InvalidRequest, match="is missing" if names - given_ else "is unknown"):
        check_inputs(wanted, tensors)


@pytest.mark.parametrize("dtype", [">f4", "<U3", "S3", "complex64", "datetime64[s]"])
def test_dtypes_without_a_name_in_the_protocol_are_refused(dtype: str) -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1,))
    with pytest.raises(InvalidRequest, match="datatype"):
        check_inputs([spec], {"x": np.zeros(2, dtype)})


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"\[0, 1, 2, 2\]"):
        check_inputs([IMAGE], {"image": np.zeros((0, 1, 2, 2), np.uint8)})
