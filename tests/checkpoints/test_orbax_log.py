"""jaxsplit hides warnings of orbax about which a user can do nothing."""

import asyncio
import logging
import sys
import types

import jax
import numpy as np
import pytest

from configs import digits_wrn16_4_x4
from jaxsplit.checkpoints import orbax_log, read, store


def test_only_the_known_and_only_meanwhile(caplog):
    logger = logging.getLogger("absl")
    known = "Metadata file does not exist: %s"

    def said() -> list[str]:
        caplog.clear()
        logger.warning(known, "a")
        logger.warning("another: %s", "b")
        return [record.getMessage() for record in caplog.records]

    both, level = ["Metadata file does not exist: a", "another: b"], logger.level
    assert said() == both
    with pytest.raises(ZeroDivisionError), orbax_log.quiet():
        assert said() == ["another: b"]
        with orbax_log.quiet():
            assert said() == ["another: b"]
        assert said() == ["another: b"]
        raise ZeroDivisionError
    assert said() == both and logger.level == level


def test_loops_that_ended_and_nothing_else(monkeypatch):
    """Drops the traceback of a callback into a closed event loop, and nothing else."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))
    with orbax_log.quiet(), orbax_log.quiet():
        hook = sys.unraisablehook
    assert hook is sys.unraisablehook  # installed once and kept, as a loop may end late
    loop = asyncio.new_event_loop()
    loop.close()

    def told(function) -> bool:
        seen.clear()
        try:
            function()
        except Exception as error:
            fields = dict(exc_type=type(error), exc_value=error, exc_traceback=error.__traceback__)
            hook(types.SimpleNamespace(**fields, err_msg=None, object=None))
        return bool(seen)

    assert not told(lambda: loop.call_soon_threadsafe(print))
    assert told(lambda: loop.run_until_complete(None))
    assert told(lambda: 1 / 0)


def test_a_checkpoint_is_saved_and_read_without_warnings(tmp_path, caplog):
    """For checkpoints with and without metrics: reads them whole, in part, and their shapes."""
    config = digits_wrn16_4_x4.get_config()
    variables = {"params": {"stack": {"bias": np.arange(3.0, dtype=np.float32)}}}
    for metrics in (None, {"test/ensemble/top1": 0.5}):
        workdir = tmp_path / str(bool(metrics))
        checkpoints = store.Checkpoints(workdir, best_metric="test/ensemble/top1")
        checkpoints.save_weights(variables, config, {"files": []}, metrics)
        checkpoints.close()
        checkpoints = read.Reader(workdir)
        assert read.model_shapes(checkpoints.path(0)) == {"params/stack/bias": (3,)}
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = {
            "params": {"stack": {"bias": jax.ShapeDtypeStruct((3,), np.float32, sharding=here)}}
        }
        got = read.restore_some(checkpoints.path(0), like)
        np.testing.assert_array_equal(got["params"]["stack"]["bias"], [0, 1, 2])
        assert checkpoints.metrics(0) == metrics
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
