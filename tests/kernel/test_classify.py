import pytest

from deadreckon.kernel.classify import conclude
from deadreckon.results.reading import Evidence


def seen(name, says, strength):
    return Evidence(name=name, says=says, strength=strength, value="seen")


@pytest.mark.parametrize(
    ("evidence", "kind", "against"),
    [
        ([], "undetermined", 0),
        ([seen("shift_tensor", "undetermined", "weak")], "undetermined", 0),
        ([seen("fingerprint", "layernorm", "weak")], "undetermined", 0),
        ([seen("shift_tensor", "layernorm", "strong")], "layernorm", 0),
        ([seen("architecture", "rmsnorm", "decisive"), seen("shift_tensor", "undetermined", "weak")], "rmsnorm", 0),
        ([seen("architecture", "rmsnorm", "decisive"), seen("shift_tensor", "layernorm", "strong")], "rmsnorm", 1),
        ([seen("architecture", "rmsnorm", "decisive"), seen("functional", "layernorm", "decisive")], "undetermined", 2),
        ([seen("epsilon_key", "rmsnorm", "strong"), seen("shift_tensor", "layernorm", "strong")], "undetermined", 2),
    ],
)
def test_strongest_evidence_decides_and_what_contradicts_it_is_kept(evidence, kind, against):
    concluded, contradictions = conclude(evidence)
    assert concluded == kind
    assert len(contradictions) == against
