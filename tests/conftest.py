"""Test settings: eight virtual CPU devices, strict jax, a compilation cache, the parity folder."""

import gc
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Several devices, so that every test of a mesh runs anywhere; and programs of tiny networks, run a
# few times each, compiled fast rather than well. Set before jax starts.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax  # noqa: E402
import pytest  # noqa: E402

from jaxsplit import compiler  # noqa: E402

if compiler.races():  # the programs of the tests themselves; XLA reads this when it starts
    os.environ["XLA_FLAGS"] += " " + compiler.NO_RACE_FLAG
    # These jaxlibs, and no newer ones, have a second code generator, which compiles 3 times as
    # fast. The processes of hosts/test_processes.py, and all benchmarks, take the usual one.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

jax.config.update("jax_numpy_rank_promotion", "raise")
PARITY = os.environ.get("JAXSPLIT_PARITY")


@pytest.fixture(scope="session", autouse=True)
def smallest_backbone():
    """`tests.support.nets.SMALLEST` is an architecture like the built-in ones."""
    from tests.support import nets

    with nets.registered(nets.SMALLEST, splits=(1, 2, 3, 4)):
        yield


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with all prepared data sets, each small."""
    folder = tmp_path_factory.mktemp("data")
    from tests.support.runs import DATA
    from tests.support.tfds import write_imagenet, write_small

    for name in sorted(set(DATA.values()) - {"imagenet2012"}):
        write_small(folder, name, 16, 12)
    write_imagenet(folder, 16, 8)
    return folder


@pytest.fixture(scope="session")
def parity() -> pathlib.Path:
    """The folder of the reference's numbers; without JAXSPLIT_PARITY the test is skipped."""
    if not PARITY:
        pytest.skip("JAXSPLIT_PARITY is not set")
    path = pathlib.Path(PARITY)
    if not path.is_dir():
        pytest.fail(f"JAXSPLIT_PARITY={PARITY}: no such directory")
    return path


def pytest_collection_finish() -> None:
    """Tracing makes many small objects: collecting garbage less often saves a twentieth."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


# Files that take the longest. They start first, so that both processes end together.
LONGEST = ("test_parity", "test_ffsd", "test_ffsd_runs", "test_export", "test_stack", "test_conv")


def pytest_collection_modifyitems(items) -> None:
    """The longest files start first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_terminal_summary(terminalreporter) -> None:
    if not PARITY:
        text = "PARITY TESTS SKIPPED: set JAXSPLIT_PARITY to the folder of the reference's numbers"
        terminalreporter.write_line(text, yellow=True, bold=True)


def pytest_sessionfinish(session, exitstatus) -> None:
    """Where the reference's numbers are given, a test that skips is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if PARITY and exitstatus == 0 and reporter and reporter.stats.get("skipped"):
        session.exitstatus = 1
        reporter.write_line(
            "\nFAILED: tests were skipped although JAXSPLIT_PARITY is set", red=True
        )
