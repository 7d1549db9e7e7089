"""A trace of some training steps, written by jax's profiler for TensorBoard."""

import contextlib
import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax

from jaxsplit.errors import ConfigError
from jaxsplit.workdir import files


class Profile:
    """Traces the steps after `span[0]` up to `span[1]`; without a span it does nothing.

    A run that resumes within the span traces what is left of it. The trace of each start lies in a
    folder of its own below `plugins/profile` of the workdir.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        span: tuple[int, int] | None,
        *,
        active: bool,
        say: Callable[[str], None],
    ):
        """`active`: whether this process writes a trace.

        Raises:
          ConfigError: the workdir is a bucket.
        """
        if span and files.is_remote(workdir):
            raise ConfigError(
                f"workdir={str(workdir)!r}: must be a directory of this machine with a profile"
            )
        self._workdir, self._say = workdir, say
        self._span = span if active else None
        self._tracing = False

    def before(self, step: int, wait: Callable[[], object]) -> AbstractContextManager:
        """Starts the trace where it is due; the context marks the step in it.

        `wait` returns when all earlier steps are finished, so that the trace holds none of them.
        """
        if self._span is None or step > self._span[1]:
            return contextlib.nullcontext()
        if step > self._span[0] and not self._tracing:
            wait()
            jax.profiler.start_trace(str(self._workdir))
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, wait: Callable[[], object]) -> None:
        """Ends the trace after its last step, which `wait` waits for."""
        if self._tracing and self._span is not None and step == self._span[1]:
            wait()
            self.close()
            self._say(
                f"profile of the steps up to {step} in {self._workdir / 'plugins' / 'profile'}; "
                "TensorBoard shows it with the package tensorboard-plugin-profile"
            )

    def close(self) -> None:
        """Writes a trace that is still open, as of a run that was stopped."""
        if self._tracing:
            self._tracing, self._span = False, None
            jax.profiler.stop_trace()
