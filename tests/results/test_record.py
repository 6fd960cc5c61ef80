"""Records: equal to their JSON, closed to NaN and to script in names, their vectors beside them."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from deadreckon.errors import InputError
from deadreckon.results import measurement, reading
from deadreckon.results.measurement import Gap, GapFigure
from deadreckon.results.reading import Classification, Classifications, Evidence
from deadreckon.results.schema import RECORDS, attributes, json_schema

HOSTILE = "<script>alert('x')</script>"


def record(model="m"):
    evidence = [Evidence(name="given", says="rmsnorm", strength="decisive", value="seen")]
    return Classifications(
        model=model, results=[Classification(model=model, kind="rmsnorm", evidence=evidence, contradictions=[])]
    )


def test_json_is_the_dictionary_and_comes_back_equal():
    made = record()
    assert json.loads(made.to_json()) == made.to_dict()
    assert Classifications.from_dict(made.to_dict()) == made
    assert (made.schema, made.model) == ("deadreckon.classify/1", "m")


def test_a_record_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().model = "other"


def test_vectors_ride_along_and_stay_out_of_the_json():
    calls = []
    made = record().with_vectors(lambda: calls.append(1) or {"w": np.ones(3)})
    assert not calls  # formed when they are asked for
    assert made.vectors["w"].shape == (3,)
    assert "w" not in made.to_dict()
    assert made == record()
    assert record().vectors == {}


def test_records_can_be_pickled():
    made = record().with_vectors(lambda: {"w": np.ones(3)})
    assert pickle.loads(pickle.dumps(made)) == made


def test_nan_is_an_error_not_a_value():
    gap = GapFigure(change=float("nan"), smallest=None, largest=None)
    made = Gap(depth_decades=gap, lambda_dead_decades=gap, effective_rank=gap, dead_counts={})
    with pytest.raises(ValueError, match="JSON"):
        json.dumps(dataclasses.asdict(made), allow_nan=False)


def test_names_cannot_inject_script_into_a_notebook():
    shown = record(HOSTILE)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


@pytest.mark.parametrize("damage", [{"results": None}, {"results": [{"model": 3}]}, {"model": 1}])
def test_what_is_not_such_a_record_is_refused_with_the_place(damage):
    with pytest.raises(InputError, match=r"\$\.|deadreckon.classify/1"):
        Classifications.from_dict({**record().to_dict(), **damage})


@pytest.mark.parametrize("kind", RECORDS)
def test_schema_has_every_field_and_says_which_record_it_is(kind):
    properties = json_schema(kind)["$defs"][kind.__name__]["properties"]
    assert set(properties) == {field.name for field in dataclasses.fields(kind)}
    assert properties["schema"] == {"const": kind.kind_of_record}


@pytest.mark.parametrize("part", ["Reading", "NormReading", "Measurement", "Figures", "Protocol", "Evidence", "Gap"])
def test_every_figure_is_described(part):
    made = getattr(measurement, part, None) or getattr(reading, part)
    assert {field.name for field in dataclasses.fields(made)} <= set(attributes(made)), part


def test_meanings_are_read_from_the_class_and_its_bases():
    meanings = attributes(reading.Reading)
    assert "null" in meanings["beta_projection"]
    assert set(meanings) >= {"model", "kind", "norms", "bytes_read"}
