"""The specification of a sweep: which verbs on which models, at which revisions, with which seeds and data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from deadreckon.results.schema import describe
from deadreckon.results.sizes import parse_size
from deadreckon.study.document import Document, Place, load_document
from deadreckon.study.options import (
    OPTIONS,
    CensusOptions,
    ClassifyOptions,
    FisherOptions,
    MeasureOptions,
    ReadOptions,
    TraceOptions,
    VerbOptions,
)
from deadreckon.study.resources import Resources

Verb = Literal["read", "classify", "census", "measure", "trace", "fisher"]
Kind = Literal["auto", "text", "images", "audio", "random"]


class Models(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model at several points of its training, or several models by a pattern.

    Attributes:
        model: a MODEL name, a folder, or a pattern (`*`, `?`, `[`) of checkpoint folders and files.
        checkpoints: a folder of checkpoint folders whose names end in their step, as trainers write them
            (checkpoint-500); taken in the order of their steps.
        revisions: branches, tags or commits of a model on the hub; of a folder, folders in it.
        steps: training steps, of which `template` makes revisions; `...` between numbers goes on as they began.
        template: a revision's name, `{step}` in the place of its step.
    """

    model: str | None = None
    checkpoints: str | None = None
    revisions: list[str | int] | None = None
    steps: list[int | str] | None = None
    template: str = "step{step}"


class Data(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files to run models on.

    Attributes:
        text: text files.
        images: files, folders, or hf:NAME[:SPLIT].
        audio: likewise.
    """

    text: list[str] = []
    images: list[str] = []
    audio: list[str] = []


class Verbs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Verbs with their options; a list of options calls a verb with each of them.

    Attributes:
        read: the dead subspace from the parameters alone.
        classify: LayerNorm, RMSNorm or neither.
        census: exactly dead parameter dimensions.
        measure: one forward pass.
        trace: the residual stream block by block.
        fisher: Fisher information along dead parameter steps.
    """

    read: ReadOptions | list[ReadOptions] | UnsetType | None = UNSET
    classify: ClassifyOptions | list[ClassifyOptions] | UnsetType | None = UNSET
    census: CensusOptions | list[CensusOptions] | UnsetType | None = UNSET
    measure: MeasureOptions | list[MeasureOptions] | UnsetType | None = UNSET
    trace: TraceOptions | list[TraceOptions] | UnsetType | None = UNSET
    fisher: FisherOptions | list[FisherOptions] | UnsetType | None = UNSET


class Spec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sweep: every verb on every model at every revision, with every seed and every data where the verb takes them.

    Attributes:
        models: MODEL names, patterns, or mappings that name revisions or steps.
        verbs: names of verbs, or a mapping from them to their options.
        seeds: of random weights and inputs, for the verbs that run a model.
        data: what these verbs run models on, by kind or as files.
        resources: what one task takes.
    """

    models: Annotated[list[str | Models], Meta(min_length=1)]
    verbs: Annotated[list[Verb], Meta(min_length=1)] | Verbs
    seeds: Annotated[list[int], Meta(min_length=1)] | None = None
    data: Annotated[list[Kind | Data], Meta(min_length=1)] | None = None
    resources: Resources = Resources()

    def calls(self) -> list[tuple[str, Place, VerbOptions]]:
        """Each verb with its options, and where they stand."""
        if isinstance(self.verbs, list):
            return [(verb, ("verbs", index), OPTIONS[verb]()) for index, verb in enumerate(self.verbs)]
        found: list[tuple[str, Place, VerbOptions]] = []
        for verb, options in OPTIONS.items():
            given = getattr(self.verbs, verb)
            if isinstance(given, list):
                found += [(verb, ("verbs", verb, index), each) for index, each in enumerate(given)]
            elif given is not UNSET:
                found.append((verb, ("verbs", verb), options() if given is None else given))
        return found


def load_spec(source: str | Path | Mapping[str, Any]) -> tuple[Spec, Document]:
    """A specification, checked.

    Args:
        source: a YAML file, or what it would hold.

    Returns:
        The specification, and the document that says where each part stands.

    Raises:
        InputError: not a specification; the message gives line and field.
        UnreachableError: the file cannot be read.
    """
    if isinstance(source, str | Path):
        document = load_document(Path(source))
    else:
        document = Document("the specification", dict(source))
    if not isinstance(document.data, dict):
        raise document.error((), "a specification is a mapping with the fields models and verbs")
    try:
        spec = msgspec.convert(document.data, Spec)
    except msgspec.ValidationError as error:
        place, message = _explained(str(error), document.data)
        raise document.error(place, message) from None
    _check(spec, document)
    return spec, document


def spec_schema() -> dict[str, Any]:
    """JSON Schema of a specification (draft 2020-12), for editors."""
    schema = msgspec.json.schema(Spec)
    parts: tuple[type[Struct], ...] = (Spec, Models, Data, Verbs, Resources, *OPTIONS.values())
    for part in parts:
        describe(schema["$defs"][part.__name__], part)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _check(spec: Spec, document: Document) -> None:
    """Refuse what types alone let pass."""
    places: list[tuple[Place, Resources]] = [(("resources",), spec.resources)]
    calls = spec.calls()
    if not calls:
        raise document.error(("verbs",), f"name at least one of {', '.join(OPTIONS)}")
    for verb, place, options in calls:
        if options.resources is not None:
            places.append(((*place, "resources"), options.resources))
        given = options.given()
        if spec.seeds is not None and "seed" in given:
            raise document.error((*place, "seed"), f"seeds are given for all verbs: leave seed out of {verb}")
        if spec.data is not None and (own := [name for name in ("data", "text", "images", "audio") if name in given]):
            raise document.error((*place, own[0]), f"data is given for all verbs: leave {own[0]} out of {verb}")
    for place, resources in places:
        if isinstance(resources.memory, str) and not parse_size(resources.memory):
            raise document.error((*place, "memory"), f"{resources.memory!r} is no size: write 8GB or 500MiB")
    for index, entry in enumerate(spec.models):
        if isinstance(entry, Models):
            _check_entry(entry, ("models", index), document)


def _check_entry(entry: Models, place: Place, document: Document) -> None:
    if (entry.model is None) == (entry.checkpoints is None):
        raise document.error(place, "give model, or checkpoints (a folder of checkpoint folders), one of the two")
    if entry.checkpoints is not None and (entry.revisions is not None or entry.steps is not None):
        raise document.error(place, "checkpoints takes all in the folder: leave revisions and steps out, or give model")
    if entry.revisions is not None and entry.steps is not None:
        raise document.error((*place, "steps"), "give revisions or steps, one of the two")
    if "{step}" not in entry.template:
        raise document.error((*place, "template"), "write {step} where the step goes, e.g. step{step}")


_WORDS = {"array": "a list", "object": "a mapping", "str": "text", "int": "a whole number", "float": "a number"}
_WORDS |= {"bool": "true or false", "null": "nothing"}


def _explained(error: str, data: Any) -> tuple[Place, str]:
    """Where msgspec's message points, and what it says, in the words of the specification."""
    message, _, path = error.partition(" - at `$")
    place: Place = tuple(int(i) if i else name for name, i in re.findall(r"\.([^.\[`]+)|\[(\d+)\]", path))
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", message):
        names = [field.name for field in msgspec.structs.fields(_struct_at(place))]
        return (*place, match[1]), f"no such field; {_nearest(match[1], names)}"
    if match := re.fullmatch(r"Object missing required field `(.*)`", message):
        return place, f"{match[1]} is missing"
    if match := re.fullmatch(r"Invalid enum value '?(.*?)'?", message):
        names = list(OPTIONS) if place[0] == "verbs" and len(place) == 2 else list(Kind.__args__)  # type: ignore[attr-defined]
        return place, f"{match[1]!r} is not known; {_nearest(match[1], names)}"
    message = re.sub(r"`([^`]*)`", lambda m: " or ".join(_WORDS.get(w, w) for w in m[1].split(" | ")), message)
    return place, message[0].lower() + message[1:].replace("`", "")


def _struct_at(place: Place) -> type[Struct]:
    """The class of the mapping at a place."""
    if not place:
        return Spec
    if place[-1] == "resources":
        return Resources
    if place[0] == "verbs":
        return Verbs if len(place) == 1 else OPTIONS[str(place[1])]
    return Models if place[0] == "models" else Data


def _nearest(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
