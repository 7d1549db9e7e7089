"""jaxsplit.values and config.check: every field with every absurd value; NumPy's values, paths."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from configs import common, digits_wrn16_4_x4
from jaxsplit import config as config_lib
from jaxsplit import values
from jaxsplit.errors import ConfigError
from tests.support.samples import every

FIELDS = dict(config_lib.flat(common.get_config()))
ABSURD = (
    None, True, -1, 0, 1, 3, 2**31, 2**32, 2**63, 10**400, -(10**400), 10**5000,
    1.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"),
    "", "x", "3", "\0", "a\nb", b"x", [], [1], ("x",), (1, 2), (2, 1), (float("nan"), 1.0),
    (10**400, 1), (None, None), ({},), {}, {"a": 1}, np.array([[1]]), object(), 1j, ConfigDict(),
)  # fmt: skip


def changed(field: str, value, config=None) -> ConfigDict:
    """The digits config with one field set, whatever the type of the value."""
    config = config or digits_wrn16_4_x4.get_config()
    group, _, name = field.rpartition(".")
    its = config[group] if group else config
    its._fields[name] = value  # as of a program that does not use ConfigDict's own ways
    return config


def message_of(run) -> str:
    with pytest.raises(ConfigError) as caught:
        run()
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize("field", every(6, FIELDS))
def test_absurd_values_are_taken_or_one_line(field):
    refused = 0
    for value in ABSURD:
        try:
            config_lib.check(changed(field, value))
        except ConfigError as error:
            (line,) = str(error).splitlines()
            assert len(line) < 1000
            refused += 1
            names = {field, field.split(".")[-1], "split"}  # arch has other ones to be divided in
            assert any(f"{name}" in line for name in names), line
    assert refused > len(ABSURD) / 2


@pytest.mark.parametrize("field", [*FIELDS, "optim", "data"])
def test_none_is_one_line_that_names_the_field(field):
    line = message_of(lambda: config_lib.check(changed(field, None)))
    assert line.startswith(f"{field}=None: must be ")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("arch", None, "a string"),
        ("divide", None, "True or False"),
        ("divide", 1, "True or False"),
        ("batch_size", True, "an integer"),
        ("batch_size", 64.0, "an integer"),
        ("batch_size", "64", "an integer"),
        ("seed", 2**63, "an integer of at most 9223372036854775807 in size"),
        ("optim.lr", "0.1", "a finite number"),
        ("optim.lr", 1e39, "0 or of 1.18e-38 to 3.4e+38 in size (float32)"),
        ("optim.eps", 1e-300, "0 or of 1.18e-38 to 3.4e+38 in size (float32)"),
        ("data.mean", 0.5, "a tuple"),
        ("data.dir", "a\0b", "a string without control characters"),
        ("data.name", "a\nb", "a string without control characters"),
        ("schedule.milestones", "10%", "a tuple"),
        ("data.threads", 1025, "at most 1024"),
        ("seed", -1, "in 0 ... 4294967295"),
    ],
)
def test_allowed(field, value, allowed):
    line = message_of(lambda: config_lib.check(changed(field, value)))
    assert line == f"{field}={value!r}: must be {allowed}"


def test_too_many_networks():
    config = changed("split", 4097, changed("divide", False))
    assert message_of(lambda: config_lib.check(config)) == "split=4097: must be at most 4096"


def test_numbers_of_thousands_of_digits():
    line = message_of(lambda: config_lib.check(changed("seed", 10**5000)))
    assert line.startswith("seed=an integer of thousands of digits: must be an integer of at most")


# ---- Values of NumPy, JAX and pathlib


TAKEN = [
    ("data.dir", pathlib.Path("a") / "b", "a/b"),
    ("init_from", pathlib.PurePosixPath("runs/a"), "runs/a"),
    ("arch", np.str_("wide_resnet16_4"), "wide_resnet16_4"),
    ("batch_size", np.int64(32), 32),
    ("batch_size", np.uint8(32), 32),
    ("batch_size", np.array(32), 32),
    ("batch_size", jnp.int32(32), 32),
    ("optim.lr", np.float32(0.5), 0.5),
    ("optim.lr", np.float64(0.25), 0.25),
    ("optim.lr", jnp.float32(0.5), 0.5),
    ("augment.flip", np.bool_(True), True),
    ("augment.erase_area", np.array([0.125, 0.25]), (0.125, 0.25)),
    ("augment.erase_area", [np.float32(0.125), 0.25], (0.125, 0.25)),
    ("schedule.milestones", ["10%", np.str_("50%")], ("10%", "50%")),
]


@pytest.mark.parametrize(("field", "value", "wanted"), TAKEN)
def test_taken_from_python(field, value, wanted):
    config = digits_wrn16_4_x4.get_config()
    group, _, name = field.rpartition(".")
    setattr(config[group] if group else config, name, value)  # as a user does
    checked = config_lib.check(config)
    for made in (config, checked, config_lib.check(changed(field, value))):
        got = (made[group] if group else made)[name]
        assert got == wanted and type(got) is type(wanted)
    assert f'"{name}"' in checked.to_json()


def test_a_type_that_does_not_fit_is_an_error_where_it_is_set():
    config = common.get_config()
    with pytest.raises(TypeError, match="batch_size"):
        config.batch_size = np.float32(0.5)


def test_check_copies():
    config = changed("batch_size", np.int64(32))
    checked = config_lib.check(config)
    checked.seed, checked.optim.lr = 7, 0.7
    assert (config.seed, config.optim.lr) == (0, 0.1)
    assert type(config.batch_size) is np.int64


def test_frozen_config_and_lists():
    config = digits_wrn16_4_x4.get_config()
    config.augment.erase_area = [0.1, 0.2]
    frozen = FrozenConfigDict(config)
    checked = config_lib.check(frozen)
    assert checked.to_dict() == config.to_dict()
    checked.optim.lr = 0.3  # it can be changed
    assert checked.augment.erase_area == (0.1, 0.2)


@pytest.mark.parametrize("config", [None, 5, {"seed": 1}, "jaxsplit/defaults.py"])
def test_what_is_no_config(config):
    line = message_of(lambda: config_lib.check(config))
    assert line == f"config={config!r}: must be what jaxsplit.defaults.get_config() returns"


def test_groups_that_users_replace():
    config = digits_wrn16_4_x4.get_config()
    config.mesh = ConfigDict(dict(data=1, net=1))
    config.mesh.data = np.int64(2)
    assert config_lib.check(config).mesh.data == 2
    assert isinstance(config.mesh, values.Fields)
    config.mesh = dict(data=np.int32(4), net=1)
    assert config_lib.check(config).mesh.to_dict() == {"data": 4, "net": 1}
