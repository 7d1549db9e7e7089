"""compare.flags: the texts of the flags."""

import pytest

from jaxsplit.compare import flags
from jaxsplit.errors import ConfigError
from tests.support.runs import tiny


def grid(**given):
    texts = {"methods": "single", "splits": "1", "seeds": "3"} | given
    return flags.grid(tiny(), **texts)


def test_lists():
    found = grid(methods="single, cotrain", splits="1,2,4", teacher="cotrain:4")
    assert found.methods == ("single", "cotrain") and found.splits == (1, 2, 4)
    assert found.teacher == ("cotrain", 4) and grid().teacher is None


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (7, 8, 9)), ("5,7", (5, 7)), ("5,", (5,)), ("1", (7,))]
)
def test_seeds(text, seeds):
    made = flags.grid(tiny(seed=7), methods="single", splits="1", seeds=text)
    assert made.seeds == seeds


@pytest.mark.parametrize(
    ("text", "field", "wanted"),
    [
        ("cotrain.weight=0,0.1,0.5", "cotrain.weight", (0.0, 0.1, 0.5)),
        ("batch_size=8,16", "batch_size", (8, 16)),
        ("augment.flip=true,False", "augment.flip", (True, False)),
        ("duration=2 steps, 4 steps", "duration", ("2 steps", "4 steps")),
        ("remat=;stage1,stage2", "remat", ("", "stage1,stage2")),
        ("distill.temperature=paper,4", "distill.temperature", ("paper", 4.0)),
        ("augment.erase_area=(0.1,0.2);(0.2,0.3)", "augment.erase_area", ((0.1, 0.2), (0.2, 0.3))),
        ("augment.erase_area=[0.1,0.2]", "augment.erase_area", ((0.1, 0.2),)),
        ("schedule.milestones=50%,75%;10%", "schedule.milestones", (("50%", "75%"), ("10%",))),
    ],
)
def test_axes(text, field, wanted):
    """Values have the type of the field."""
    found = grid(axes=[text]).axes
    assert found == {field: wanted}
    assert [type(value) for value in found[field]] == [type(value) for value in wanted]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3 hours", 10800),
        ("1.5h", 5400),
        ("40 minutes", 2400),
        ("40 min", 2400),
        ("90", 90),
        ("90 seconds", 90),
        ("1 day", 86400),
        (None, None),
    ],
)
def test_budget(text, seconds):
    assert flags.budget(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-3 hours", "3 weeks", "hours", "1e400"])
def test_budget_that_is_none(text):
    with pytest.raises(ConfigError, match="^compare.budget=.*: must be a time such as '3 hours'"):
        flags.budget(text)


BAD = [
    ({"methods": "single,cotrian"}, "compare.methods='cotrian': must be of single, independent, "),
    ({"methods": "single,,dml"}, "compare.methods='single,,dml': must be a list with commas"),
    ({"methods": "single,single"}, "compare.methods='single,single': lists a value twice"),
    ({"splits": "0,1"}, "compare.splits='0,1': must be whole numbers of 1 or more"),
    ({"splits": "two"}, "compare.splits='two': must be whole numbers"),
    ({"seeds": "0"}, "compare.seeds='0': must be whole numbers of 1 or more"),
    ({"seeds": "12345"}, "compare.seeds='12345': must be at most 1000 seeds; '12345,' is one"),
    (
        {"seeds": "5,99999999999999"},
        "compare.seeds='5,99999999999999': must be below 4,294,",
    ),
    ({"axes": ["augment.erase_area={1:2}"]}, "compare.axis='augment.erase_area={1:2}': '{1:2}' m"),
    ({"teacher": "cotrain"}, "compare.teacher='cotrain': must be METHOD:SPLIT"),
    ({"teacher": "guess:2"}, "compare.teacher='guess:2': must be METHOD:SPLIT"),
    ({"axes": ["cotrain.wieght=0,1"]}, "compare.axis: cotrain.wieght='0,1': no such field"),
    ({"axes": ["cotrain=1"]}, "compare.axis='cotrain=1': must be a field, is a group"),
    ({"axes": ["split=1,2"]}, "compare.axis='split=1,2': split is set by --compare.splits"),
    ({"axes": ["batch_size"]}, "compare.axis='batch_size': must be FIELD=VALUE"),
    ({"axes": ["batch_size=8,many"]}, "compare.axis='batch_size=8,many': 'many' must be an int"),
    ({"axes": ["augment.flip=yes"]}, "compare.axis='augment.flip=yes': 'yes' must be True or F"),
    ({"axes": ["optim.lr=1,1.0"]}, "compare.axis='optim.lr=1,1.0': lists a value twice"),
    ({"axes": ["optim.lr=1", "optim.lr=2"]}, "compare.axis='optim.lr=2': optim.lr is an axis"),
]


@pytest.mark.parametrize(("given", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input(given, said):
    with pytest.raises(ConfigError) as caught:
        grid(**given)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_wrong_axis_names_fields_like_it():
    with pytest.raises(ConfigError, match="there are .*cotrain.weight"):
        grid(axes=["cotrain.wieght=0,1"])


def test_batches():
    assert flags.batches("1,64") == (1, 64) and flags.batches(" ") == ()
    with pytest.raises(ConfigError, match="compare.latency='0': must be whole numbers"):
        flags.batches("0")
